"""Runs a tool in several processes, on one machine or many: torchrun, ending as the tool ended.

    python tools/launch.py --nproc-per-node 4 tools/train_net.py --cfg configs/resnet50_voc.yaml ...

All options are torchrun's (see its --help), which does the work. This adds an end in one line
instead of a traceback, and the exit code of the tool: 143 after SIGTERM, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import get_args_parser
from torch.distributed.run import main as torchrun

from lib.command_line import say_error
from lib.engine.distributed import LAUNCHER

SECONDS_TO_END = "600"
"""For what ends in order when asked to, an update and its checkpoint, before it is killed."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    # From the tool on nothing is an option of torchrun, which may take --run for --run-path.
    tool = next((n for n, word in enumerate(argv) if word.endswith(".py")), len(argv))
    argv.insert(tool, "--")
    if "--shutdown-timeout" in get_args_parser().format_help():  # not in older versions of torch
        argv = ["--shutdown-timeout", SECONDS_TO_END, *argv]
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        torchrun(argv)
    except ChildFailedError as error:
        rank, failure = cause(error.failures)
        died = failure.exitcode < 0
        how = f"was killed by {failure.signal_name()}" if died else f"ended with {failure.exitcode}"
        say_error(f"process {rank} {how} (see above); all others were ended")
        return 128 - failure.exitcode if died else failure.exitcode
    except RendezvousError as error:
        say_error(f"the machines do not meet, or have lost each other: {error}")
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


def cause(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first, and how.

    One that is killed makes others fail, with an error, before torchrun has looked at any.
    """
    first = min(failure.timestamp for failure in failures.values())
    at_once = {r: f for r, f in failures.items() if f.timestamp <= first + 1}  # whole seconds
    killed = {r: f for r, f in at_once.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM}
    return min((killed or at_once).items(), key=lambda of_rank: of_rank[1].timestamp)


if __name__ == "__main__":
    sys.exit(main())
