"""Where the results of a run lie, and how command lines name them.

<run>/test/<data set>/detections.json  detections_image_labels.json  metrics.json
      pseudo_labels/<data set>.json  visual/<data set>/*.png  gallery/<data set>/index.html
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lib.engine.runs import newest_run


def add_result_arguments(parser: argparse.ArgumentParser, what: str = "COCO result file") -> None:
    """Adds the options that `run_from_args` and `detections_from_args` read."""
    group = parser.add_argument_group("results", "a file, or what the newest run has")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--detections", type=Path, metavar="FILE", help=f"any {what}")
    either.add_argument("--run", type=Path, metavar="DIR", help="a run folder")
    group.add_argument(
        "--outputs", type=Path, default=Path("Outputs"), metavar="DIR", help="where runs lie"
    )


def run_from_args(args: argparse.Namespace) -> Path:
    """The run a command line names, or the newest.

    Raises:
        FileNotFoundError: there is no such folder, or no run at all.
    """
    if args.run is None:
        return newest_run(args.outputs)
    if not args.run.is_dir():
        raise FileNotFoundError(f"{args.run}: no such run folder")
    return args.run


def detections_from_args(
    args: argparse.Namespace, dataset_name: str, image_labels: bool = False
) -> Path:
    """The detections a command line names: a file, or those of a run on a data set.

    Args:
        image_labels: the detections that keep to the image-level labels.

    Raises:
        FileNotFoundError: the run has none; the text says how to make them.
    """
    if args.detections is not None:
        return args.detections
    run = run_from_args(args)
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
