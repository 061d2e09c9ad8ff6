"""What all command line tools share: user errors end in one line, not in a traceback."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor

Main = Callable[[Sequence[str] | None], int]


def errors_in_a_line(main: Main) -> Main:
    """Decorates a tool's `main`: bad input (OSError, ValueError) is said in one line, with code 2.

    An interrupt ends with code 130 (128 + SIGINT), as in a shell.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except BrokenExecutor:
            say_error("a worker process died (out of memory?); run again, with fewer --jobs")
        except (OSError, ValueError) as error:
            say_error(str(error))
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 128 + signal.SIGINT
        return 2

    return guarded


def say_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
