#!/usr/bin/env python3
"""What do a network's stages learn from, and what do they learn? Mined instances beside the truth.

For every checkpoint of the given runs: the instances that each stage is taught are mined on a data
set that training has not seen, and compared with its true masks; so are the detections and, with
--clusters, the clusters of proposals that the training of one seed begins with.
docs/ablation.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lib.analysis.instances import Measures, analyse_checkpoint, analyse_clusters, known_images
from lib.analysis.seed_statistics import spread
from lib.command_line import errors_in_a_line
from lib.config import load_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.engine.build import open_test_data, open_training_data
from lib.engine.checkpoint import list_checkpoints
from lib.engine.runs import checkpoint_folder, newest_checkpoint
from lib.files import read_json, write_json

TAUGHT = (
    "good",
    "weighed good",
    "drawn good",
    "weighed tight",
    "coverage",
    "weighed coverage",
    "weighed purity",
    "noise",
)
HEADS = ("ap50", "ap75", "ap50 by cls", "ap75 by cls", "good", "tight", "coverage", "purity")
"""Measures of the tables, in percent; the JSON has all."""

Rows = dict[str, dict[str, Measures]]
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
    coco = CocoImages(dataset.json)
    if args.clusters is None:
        data = open_test_data(dataset, coco)
    else:
        data = open_training_data(dataset, coco, with_clusters=True)
    images = known_images(data, read_json(dataset.json), str(dataset.json))
    if not images:
        raise ValueError(f"{dataset.json}: no image with proposals to look at")

    truth = read_json(dataset.json)
    taught: dict[str, Rows] = {}
    heads: dict[str, Rows] = {}
    for run in args.runs:
        config = load_config(run / "config.yaml")
        newest = newest_checkpoint(run)
        taught[str(run)], heads[str(run)] = {}, {}
        if args.clusters is not None:
            taught[str(run)]["before"] = {"clusters": analyse_clusters(images)}
        for path in [newest] if args.last else list_checkpoints(checkpoint_folder(run)):
            step = path.stem.removeprefix("model_step")
            taught[str(run)][step], heads[str(run)][step] = analyse_checkpoint(
                path, config, data, images, truth, args.device
            )
    if args.output:
        content = {"dataset": dataset.name, "taught": taught, "heads": heads}
        write_json(args.output, content, indent=1)
    tables = {
        "What the stages are taught": table(list(taught.values()), TAUGHT, "instances"),
        "What the heads detect": table(list(heads.values()), HEADS),
    }
    print("\n\n".join(f"{title}\n\n{text}" for title, text in tables.items() if text))
    return 0


def table(of_runs: Sequence[Rows], columns: Sequence[str], count: str | None = None) -> str:
    """Mean and standard deviation over the runs, in percent, as a Markdown table; "" if empty.

    Args:
        count: a measure that is no share, as a first column.
    """
    titles = ["updates", "", *([count] if count else []), *columns]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for step, rows in of_runs[0].items():
        for name in rows:
            runs = [run[step][name] for run in of_runs if name in run.get(step, {})]
            cells = [step, name, *([_count(runs, count)] if count else [])]
            cells += [_percent(runs, measure) for measure in columns]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _count(runs: Sequence[Measures], measure: str) -> str:
    values = [value for run in runs if (value := run.get(measure)) is not None]
    return f"{spread(values).mean:.1f}" if values else ""


def _percent(runs: Sequence[Measures], measure: str) -> str:
    values = [value for run in runs if (value := run.get(measure)) is not None]
    return spread(values).percent() if values else ""


if __name__ == "__main__":
    sys.exit(main())
