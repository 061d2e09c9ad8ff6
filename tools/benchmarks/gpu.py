"""Runs the checks of a GPU: every one is a process of its own with a time limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import CHECKS, Check
from benchmarks.report import Conditions, Row, describe_machine, table_text
from lib.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "benchmark.py"
_SAID = 4000
"""Characters kept of what a check has printed."""


def run_checks(
    names: Sequence[str], conditions: Conditions, path: Path, minutes: float
) -> Iterator[tuple[bool, str]]:
    """Runs the checks, and writes `path` after each.

    Args:
        minutes: for all of them together.

    Yields:
        For each check whether it is ok, and lines that say how it went.
    """
    end = time.monotonic() + 60 * minutes
    machine = describe_machine()
    content: dict[str, Any] = {"machine": machine, "device": str(conditions.device), "checks": {}}
    for name in names:
        outcome = run_check(name, CHECKS[name], conditions, end - time.monotonic())
        content["checks"][name] = outcome
        write_json(path, content, indent=2)
        text = f"{outcome['status']:9}{name:10}{outcome['seconds']:6.1f} s  {outcome['why']}"
        if outcome["rows"]:
            table = table_text([Row(**row) for row in outcome["rows"]])
            text += "\n    " + table.replace("\n", "\n    ")
        yield outcome["status"] == "ok", text


def run_check(name: str, check: Check, conditions: Conditions, left: float) -> dict[str, Any]:
    """Runs one check in a process of its own.

    Args:
        left: seconds for all that is still to be run.

    Returns:
        status, why, seconds, rows and the end of what was said.
    """
    missing = [package for package in check.needs if find_spec(package) is None]
    if check.only_gpu and conditions.device.type != "cuda":
        return _outcome("ok", "nothing to check without a GPU")
    if missing:
        return _outcome("left out", f"not installed: {', '.join(missing)}")
    limit = min(check.seconds, left)
    if limit < 5:
        return _outcome("left out", "no time is left")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, str(TOOL), "gpu", name, "--within"]
        command += ["--device", str(conditions.device), "--json", str(path)]
        code, said = _ended(command + (["--quick"] if conditions.quick else []), limit)
        seconds = time.monotonic() - start
        if code is None:
            return _outcome("failed", f"not done after {limit:.0f} s", seconds, said=said)
        if code != 0:
            return _outcome("failed", _why(said) or f"ended with code {code}", seconds, said=said)
        rows = read_json(path)
    missed = [row["what"] for row in rows if Row(**row).met is False]
    return _outcome("missed" if missed else "ok", "; ".join(missed), seconds, rows, said)


def _ended(command: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Exit code and output of a command; None where it was ended after `limit` seconds."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # what it has started as well
                process.wait()
        output.seek(0)
        return code, output.read()[-_SAID:]


def _why(said: str) -> str:
    """The line that names the last error; CUDA's and pytest's have more to say below it."""
    lines = [line.removeprefix("E ").strip() for line in said.strip().splitlines()] or [""]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1]


def _outcome(
    status: str, why: str, seconds: float = 0.0, rows: Sequence[dict] = (), said: str = ""
) -> dict[str, Any]:
    return {"status": status, "why": why, "seconds": seconds, "rows": list(rows), "said": said}
