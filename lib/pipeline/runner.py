"""Runs steps one after the other, each as the tool that a user would call.

Every step runs every time: a tool whose result is up to date says so and ends at once.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TypeVar

from lib.command_line import IN_CHAIN
from lib.pipeline.steps import Step

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
_running: set[subprocess.Popen[bytes]] = set()
_signals: list[int] = []
"""Received while `passing_signals` is active."""


def run_steps(
    steps: Sequence[Step],
    estimates: Mapping[str, float] | None = None,
    log: Path | None = None,
    show_commands: bool = True,
) -> dict[str, float]:
    """Runs every step; returns the seconds that each took, by its title.

    Args:
        estimates: expected seconds by the step's name. Every step then begins with the time left,
            corrected by what the steps before it really took.
        log: takes the tools' output, each tool on one thread; None leaves it on the terminal.
        show_commands: log the command line of every tool.

    Raises:
        SystemExit: a step failed or was stopped; with its exit code.
    """
    taken: dict[str, float] = {}
    with passing_signals():
        for number, step in enumerate(steps, 1):
            text = f"[{number}/{len(steps)}] {step.title}: "
            if log is not None:
                logger.info("%soutput in %s", text, log)
            else:
                text += step.why
                if estimates is not None:
                    left = duration(seconds_left(steps, [*taken.values()], estimates))
                    text += f" About {left} left in all."
                logger.info("\n%s", text)
                if show_commands:
                    logger.info("    %s", shlex.join(["python", *step.command]))
            start = time.monotonic()
            code = 0 if _signals else run_tool(step.command, log)
            taken[step.title] = round(time.monotonic() - start, 2)
            if _signals:
                logger.error("\n%s was stopped. Run the same command again to resume.", step.title)
                raise SystemExit(128 + _signals[0])
            if code:
                where = "above" if log is None else f"in {log}"
                logger.error(
                    f"\nerror: {step.title} failed with code {code}; the reason is {where}. Run "
                    "the same command again once that is fixed: it resumes here."
                )
                raise SystemExit(code)
    return taken


def run_tool(command: Sequence[str], log: Path | None = None) -> int:
    """Runs one tool to its end; returns its exit code, 128 + N where signal N killed it."""
    words = [str(ROOT / word) if word.startswith("tools/") else word for word in command]
    environment = {**os.environ, IN_CHAIN: "yes"}
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        environment["OMP_NUM_THREADS"] = "1"
    with log.open("ab") if log is not None else nullcontext() as file:
        process = subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=file, stderr=file
        )
        _running.add(process)
        if _signals:  # came while it started
            process.terminate()
        try:
            code = process.wait()
        finally:
            _running.discard(process)
    return code if code >= 0 else 128 - code


def side_by_side(work: Callable[[T], object], items: Iterable[T], jobs: int) -> None:
    """Calls `work`, which runs steps, for every item, `jobs` at a time.

    After a failure or a signal no other item begins; those that run may end.

    Raises:
        Whatever the first failing call raised.
    """
    failed = threading.Event()

    def work_unless_failed(item: T) -> None:
        if failed.is_set():
            return
        try:
            work(item)
        except BaseException:
            failed.set()
            raise

    with passing_signals(), ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work_unless_failed, item) for item in items]:
            future.result()


@contextmanager
def passing_signals() -> Iterator[None]:
    """Hands SIGTERM on to the running tools, which save what they have and end.

    Ctrl-C reaches them by itself. Outside the main thread this does nothing.
    """
    before = {}
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is not _hand_on:
        _signals.clear()
        before = {n: signal.signal(n, _hand_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hand_on(number: int, frame: FrameType | None) -> None:
    _signals.append(number)
    if number == signal.SIGTERM:
        for process in [*_running]:
            process.send_signal(number)


def seconds_left(
    steps: Sequence[Step], taken: Sequence[float], estimates: Mapping[str, float]
) -> float:
    """Seconds for the other steps if they are off as much as the first ones, which took `taken`."""
    expected = [estimates[step.name] for step in steps]
    # Much faster than expected: wholly or partly done before, which says nothing of the speed.
    ran = [(t, e) for t, e in zip(taken, expected, strict=False) if t > e / 4]
    # A first short step alone says little: it counts as if a minute had gone as expected.
    factor = (60 + sum(t for t, _ in ran)) / (60 + sum(e for _, e in ran))
    return factor * sum(expected[len(taken) :])


def duration(seconds: float) -> str:
    """Seconds in words, to the precision of an estimate."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "hours")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.1f} {name}" if name == "hours" else f"{max(1, round(value))} {name}"
    return f"{seconds / 86400:.1f} days"
