#!/usr/bin/env python3
"""What do a network's stages learn from, and what do they learn? Mined instances beside the truth.

For every checkpoint of the given runs: the instances that each stage is taught are mined on a data
set that training has not seen, and compared with its true masks; so are the detections.
docs/ablation.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lib.command_line import errors_in_a_line
from lib.config import load_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.engine.checkpoint import list_checkpoints
from lib.engine.instance_analysis import analyse_checkpoint, known_images
from lib.engine.runs import checkpoint_folder, newest_checkpoint
from lib.engine.setup import open_test_data
from lib.files import read_json, write_json
from lib.seed_statistics import spread

COLUMNS = (
    "good",
    "weighed good",
    "drawn good",
    "drawn weighed good",
    "coverage",
    "purity",
    "noise",
    "missed",
    "pick cls",
    "pick integrity",
    "pick score",
)
"""Measures of the table, in percent; the JSON has all."""

Rows = dict[str, dict[str, dict[str, float | None]]]
"""Checkpoint -> what is looked at -> measure -> mean over the images."""


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders: the seeds of one variant")
    parser.add_argument("--last", action="store_true", help="only the last checkpoint of each run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a JSON file for the numbers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch (default: its own)")
    add_dataset_arguments(parser, default="shapes_val")
    args = parser.parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dataset = dataset_from_args(args)
    data = open_test_data(dataset, CocoImages(dataset.json))
    images = known_images(data, read_json(dataset.json), str(dataset.json))
    if not images:
        raise ValueError(f"{dataset.json}: no image with objects and proposals to look at")

    of_runs: dict[str, Rows] = {}
    for run in args.runs:
        config = load_config(run / "config.yaml")
        newest = newest_checkpoint(run)
        checkpoints = [newest] if args.last else list_checkpoints(checkpoint_folder(run))
        of_runs[str(run)] = {
            path.stem.removeprefix("model_step"): analyse_checkpoint(
                path, config, data, images, args.device
            )
            for path in checkpoints
        }
    if args.output:
        write_json(args.output, {"dataset": dataset.name, "runs": of_runs}, indent=1)
    print(table(list(of_runs.values())))
    return 0


def table(of_runs: Sequence[Rows]) -> str:
    """Mean and standard deviation over the runs, in percent, as a Markdown table."""
    lines = [
        f"| updates | | instances | {' | '.join(COLUMNS)} |",
        "|" + "---|" * (len(COLUMNS) + 3),
    ]
    for step, rows in of_runs[0].items():
        for name in rows:
            runs = [run[step][name] for run in of_runs if step in run]
            cells = [_cell(runs, measure) for measure in COLUMNS]
            count = _cell(runs, "instances", percent=False)
            lines.append(f"| {step} | {name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(runs: Sequence[dict[str, float | None]], measure: str, percent: bool = True) -> str:
    values = [v for run in runs if (v := run.get(measure)) is not None]
    if not values:
        return ""
    return spread(values).percent() if percent else f"{spread(values).mean:.1f}"


if __name__ == "__main__":
    sys.exit(main())
