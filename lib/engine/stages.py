"""A chain of tools, each run as a user would run it: left out once done, gone on with if not."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from lib.files import read_json, write_json

logger = logging.getLogger(__name__)

TOOLS = Path(__file__).resolve().parents[2] / "tools"


class Stage(NamedTuple):
    """One tool of a chain."""

    name: str
    why: str
    """What happens and why, for the reader of the terminal."""
    command: Sequence[str]
    """The tool's file name and its arguments."""


def run_stages(
    pipeline: Sequence[Stage],
    record: Path,
    estimates: Mapping[str, float] | None = None,
    tools: Path = TOOLS,
) -> dict[str, float] | None:
    """Runs what is not yet done; returns the seconds of every stage, or None after a failure.

    Args:
        record: a json that keeps, for every stage, its command, the seconds spent on it so far
            (interrupted attempts included) and whether it is done.
        estimates: seconds that every stage is expected to take; with them it is said how much is
            left, corrected by what the stages before really took.
    """
    spent: dict[str, dict[str, Any]] = read_json(record) if record.is_file() else {}
    for number, (name, why, command) in enumerate(pipeline, 1):
        title = f"[{number}/{len(pipeline)}] {name}"
        entry = spent.setdefault(name, {"command": [*command], "seconds": 0.0, "done": False})
        if entry["command"] != [*command]:
            logger.error(
                "error: %s was made with other arguments (%s); name another --output or remove "
                "that folder",
                record,
                " ".join(entry["command"]),
            )
            return None
        if entry["done"]:
            logger.info("%s: done before, in %s", title, duration(entry["seconds"]))
            continue
        left = ""
        if estimates is not None:
            left = f" (about {duration(seconds_left(pipeline, spent, estimates))} left in all)"
        logger.info("\n%s: %s%s", title, why, left)
        start = time.monotonic()
        try:
            code = _run([sys.executable, str(tools / command[0]), *command[1:]])
            entry["done"] = code == 0
        finally:
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - start, 2)
            write_json(record, spent, indent=2)
        if code:
            logger.error(
                "\n%s ended with code %d%s. Run the same command again to go on from here.",
                command[0],
                code,
                "" if code in (128 + signal.SIGINT, -signal.SIGINT) else "; the reason is above",
            )
            return None
    return {stage.name: spent[stage.name]["seconds"] for stage in pipeline}


def seconds_left(
    pipeline: Sequence[Stage],
    spent: Mapping[str, Mapping[str, Any]],
    estimates: Mapping[str, float],
) -> float:
    """What the stages that are not done will take if they are off as much as those that are."""
    done = [s.name for s in pipeline if spent.get(s.name, {}).get("done")]
    expected = sum(estimates[name] for name in done)
    really = sum(spent[name]["seconds"] for name in done)
    # A first short stage alone says little: it counts as if a minute had gone as expected.
    factor = (really + 60) / (expected + 60)
    return sum(
        max(0.0, factor * estimates[s.name] - spent.get(s.name, {}).get("seconds", 0.0))
        for s in pipeline
        if s.name not in done
    )


def duration(seconds: float) -> str:
    """Seconds in words that are no more exact than an estimate."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "hours")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.1f} {name}" if name == "hours" else f"{max(1, round(value))} {name}"
    return f"{seconds / 86400:.1f} days"


def _run(command: Sequence[str]) -> int:
    """Runs a tool to its end. Signals are the tool's to answer: it saves what it has, then ends."""
    process = subprocess.Popen(command)

    def hand_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:  # Ctrl-C has reached the tool already
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
