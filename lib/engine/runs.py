"""Run folders: one experiment, with everything needed to understand and repeat it.

<run>/config.yaml  environment.json  log.txt  history.jsonl  ckpt/model_step<N>.pth
      tensorboard/  test/<dataset>/
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib.engine.checkpoint import checkpoint_folder, list_checkpoints

_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "opencv-python-headless", "pycocotools")


def new_run(outputs: Path, config_stem: str) -> Path:
    """A name for a run that starts now: `<outputs>/<config_stem>/<YYYYmmdd-HHMMSS>`, unused."""
    start = datetime.now().strftime("%Y%m%d-%H%M%S")
    path, number = outputs / config_stem / start, 1
    while path.exists():
        number += 1
        path = path.with_name(f"{start}-{number}")
    return path


def claim_folder(run: Path) -> None:
    """Makes a run's folders and tries whether they can be written to, before any work is done.

    Raises:
        OSError: they cannot; the text says why.
    """
    try:
        checkpoint_folder(run).mkdir(parents=True, exist_ok=True)
        for folder in (run, checkpoint_folder(run)):
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"room?")
    except OSError as error:
        raise OSError(
            f"{run}: nothing can be written there ({error.strerror}); name another --output, or "
            "make room"
        ) from error


def newest_run(outputs: Path) -> Path:
    """The run below `outputs` (at most two folders deep) that was started last.

    Only runs with a checkpoint count, and of those that lie in another run (the Mask R-CNN of a
    CIM run) none. A run's start is the time its config.yaml was written.

    Raises:
        FileNotFoundError: there is none.
    """
    runs = {
        config.parent: (config.stat().st_mtime_ns, str(config))
        for pattern in ("config.yaml", "*/config.yaml", "*/*/config.yaml")
        for config in outputs.glob(pattern)
        if list_checkpoints(checkpoint_folder(config.parent))
    }
    runs = {run: start for run, start in runs.items() if run.parent not in runs}
    if not runs:
        raise FileNotFoundError(
            f"{outputs}: no run with a checkpoint; train one with tools/train_net.py or name a run"
        )
    return max(runs, key=runs.__getitem__)


def find_checkpoint(run: Path, step: int | None = None) -> Path:
    """The checkpoint of a run after `step` updates, or the one with the most.

    Raises:
        FileNotFoundError: it has none; the text lists those that are there.
    """
    folder = checkpoint_folder(run)
    found = list_checkpoints(folder)
    if step is None:
        if not found:
            raise FileNotFoundError(f"{folder}: no checkpoint model_step<N>.pth")
        return found[-1]
    path = folder / f"model_step{step}.pth"
    if not path.is_file():
        there = ", ".join(p.name for p in found) or "none"
        raise FileNotFoundError(f"{path}: no such checkpoint; there are: {there}")
    return path


def describe_environment() -> dict[str, Any]:
    """Versions, machine, git state and command line: what a result depends on beside its data."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit and changed files of the working tree this code runs from; None outside git."""

    def git(*command: str) -> list[str]:
        told = subprocess.check_output(
            ["git", *command], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, timeout=10
        )
        return told.decode(errors="replace").splitlines()

    try:
        return {"commit": git("rev-parse", "HEAD")[0], "changed": git("status", "--porcelain")}
    except (OSError, subprocess.SubprocessError):
        return None


def seconds_trained(run: Path) -> float:
    """Seconds that the updates of a run have taken so far, by its history; 0 without one."""
    seconds, done = 0.0, 0
    for entry in read_lines(run / "history.jsonl"):
        seconds += entry.get("seconds", 0.0) * (entry["iteration"] - done)
        done = entry["iteration"]
    return seconds


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; [] without the file. A last line cut short is left out."""
    if not path.is_file():
        return []
    *lines, last = path.read_text().split("\n")
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: a broken line ({error}); remove the file and run again"
        ) from None


class _TqdmHandler(logging.Handler):
    """Writes log lines above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging(log_file: Path | None = None, rank: int = 0) -> None:
    """Sends INFO and above to the terminal and, with times, to `log_file` (appended).

    Args:
        rank: of this process; from 1 on, only errors are sent, with this number, to the terminal.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    for handler in [h for h in root.handlers if getattr(h, "of_this_project", False)]:
        root.removeHandler(handler)
        handler.close()
    forms: dict[logging.Handler, str] = {}
    forms[_TqdmHandler()] = f"process {rank}: %(message)s" if rank else "%(message)s"
    if log_file is not None and rank == 0:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        forms[logging.FileHandler(log_file)] = "%(asctime)s %(levelname)s %(message)s"
    for handler, form in forms.items():
        handler.setFormatter(logging.Formatter(form))
        handler.of_this_project = True
        root.addHandler(handler)


def detections_of_run(run: Path, dataset_name: str, image_labels: bool = False) -> Path:
    """The detections of a run on a data set.

    Args:
        image_labels: those that keep to the image-level labels.

    Raises:
        FileNotFoundError: the run has none; the text says how to make them.
    """
    stem = "detections_image_labels" if image_labels else "detections"
    path = run / "test" / dataset_name / f"{stem}.json"
    if not path.is_file():
        option = " --image-labels" if image_labels else ""
        raise FileNotFoundError(
            f"{path}: no such file; make it with tools/test_net.py --run {run}{option} "
            f"on the data set {dataset_name}"
        )
    return path


def results_of_run(run: Path, dataset_name: str) -> dict[str, Path]:
    """The files that a run has on a data set, by kind: `detections`, `pseudo_labels`."""
    files = {
        "detections": run / "test" / dataset_name / "detections.json",
        "pseudo_labels": run / "pseudo_labels" / f"{dataset_name}.json",
    }
    return {kind: path for kind, path in files.items() if path.is_file()}


def run_of(result: Path) -> Path | None:
    """The run that a result file lies in, at its place as above; None for a file elsewhere."""
    folder = result.absolute().parent
    if folder.parent.name == "test":
        return Path(os.path.normpath(result.parent / ".." / ".."))
    if folder.name == "pseudo_labels":
        return Path(os.path.normpath(result.parent / ".."))
    return None
