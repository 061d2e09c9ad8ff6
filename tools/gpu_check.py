"""Runs what a first run on a GPU has to show: one line for each check, all numbers in a file.

Every check is a process of its own with a time limit, and the next one runs after a failure too.
On a machine without a GPU `--device cpu` tries the checks themselves, at small sizes.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lib.benchmarks.gpu_checks import CHECKS, Check
from lib.benchmarks.report import Conditions, Row, describe_machine, machine_text, table_text
from lib.command_line import errors_in_a_line
from lib.engine.distributed import make_current
from lib.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
_SAID = 4000
"""Characters kept of what a check has printed."""


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit code: 0 where all is ok, 1 where something is missed, failed or left out.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, default=Path("Outputs/gpu_check.json"))
    parser.add_argument("--minutes", type=float, default=6.0, help="for all checks together")
    parser.add_argument("--quick", action="store_true", help="small sizes, as always on the CPU")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(CHECKS):
        raise ValueError(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"no GPU here: torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees "
            "none; --device cpu tries the checks without one"
        )
    make_current(device)
    conditions = Conditions(device, quick=args.quick or device.type == "cpu")
    names = [name for name in CHECKS if name in args.names or not args.names]
    if args.within:
        (name,) = names
        write_json(args.json, [asdict(row) for row in CHECKS[name].run(conditions)])
        return 0
    return run_all(names, conditions, args.json, time.monotonic() + 60 * args.minutes)


def run_all(names: Sequence[str], conditions: Conditions, path: Path, end: float) -> int:
    """Runs the checks, and writes `path` after each."""
    machine = describe_machine()
    print(machine_text(machine), flush=True)
    content: dict[str, Any] = {"machine": machine, "device": str(conditions.device), "checks": {}}
    for name in names:
        outcome = run_check(name, CHECKS[name], conditions, end - time.monotonic())
        content["checks"][name] = outcome
        write_json(path, content, indent=2)
        print(f"{outcome['status']:9}{name:10}{outcome['seconds']:6.1f} s  {outcome['why']}")
        rows = [Row(**row) for row in outcome["rows"]]
        if rows:
            print("    " + table_text(rows).replace("\n", "\n    "))
        sys.stdout.flush()
    bad = [name for name, of in content["checks"].items() if of["status"] != "ok"]
    print(f"{len(names) - len(bad)} of {len(names)} ok; all numbers: {path}")
    return 1 if bad else 0


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
        command = [sys.executable, str(Path(__file__).resolve()), name, "--within"]
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


if __name__ == "__main__":
    sys.exit(main())
