"""Makes a gallery of results: a folder whose index.html opens in any browser, without a server.

It shows the images of a data set with detections, pseudo labels and true masks, the worst images
first, filters and zoom, the curves of the run, and, of some images, what the method sees on them:
proposals, response maps, clusters and mined instances.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lib.analysis.details import detail_layers, inspect_worst
from lib.command_line import errors_in_a_line
from lib.config import Config, load_config
from lib.data.catalog import Dataset, add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.engine.runs import newest_run, read_lines, results_of_run, start_logging
from lib.parallel import add_parallel_arguments, failures_text, workers_from_args
from lib.visualization.collect import Collected, collect
from lib.visualization.gallery import LAYERS, Page, write_gallery

logger = logging.getLogger("gallery")

FEW = 400
"""Below this many images starting processes takes longer than they save."""


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    start_logging()
    return make(args)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    results = parser.add_argument_group("results", "what a run has, or any COCO files")
    results.add_argument("--run", type=Path, metavar="DIR", help="default: the newest run")
    results.add_argument("--outputs", type=Path, default=Path("Outputs"), metavar="DIR")
    results.add_argument("--detections", type=Path, metavar="FILE", help="COCO results")
    results.add_argument("--pseudo-labels", type=Path, metavar="FILE", help="a COCO json")
    results.add_argument(
        "--ground-truth", action="store_true", help="no run: the data set's own masks alone"
    )
    what = parser.add_argument_group("what to show")
    what.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    what.add_argument(
        "--score-thresh", type=float, default=0.01, help="leaves out what is below (default: 0.01)"
    )
    what.add_argument(
        "--per-image",
        type=int,
        default=30,
        metavar="N",
        help="best instances of each (default: 30)",
    )
    what.add_argument(
        "--details",
        type=int,
        default=60,
        metavar="N",
        help="show what the method sees on the N worst images (default: 60)",
    )
    what.add_argument(
        "--iou", type=float, default=0.5, help="from which a detection hits (default: 0.5)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: in the run's gallery/")
    add_parallel_arguments(parser, None, "one per core if it pays")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_dataset_arguments(parser)
    return parser.parse_args(argv)


def make(args: argparse.Namespace) -> int:
    dataset = dataset_from_args(args)
    run = run_of(args)
    results = result_files(args, run, dataset)
    config = Config()
    if run is not None and (run / "config.yaml").is_file():
        config = load_config(run / "config.yaml")
    coco = CocoImages(dataset.json, require_annotations=False)
    collected = collect(
        coco,
        dataset.images,
        results,
        score_thresh=args.score_thresh,
        per_image=args.per_image,
        iou_thresh=args.iou,
        iou_thresholds=config.test.iou_thresholds,
    )
    pictures = collected.pictures[: args.limit]
    prm = Path(args.prm) if args.prm else None
    details = inspect_worst(pictures, args.details, run, dataset, coco, prm, args.device)
    page = describe(collected, coco, dataset, run, results, args.iou)
    page = replace(page, layers={**page.layers, **detail_layers(details)})
    if args.output is not None:
        folder = args.output
    else:
        folder = (run or args.outputs) / "gallery" / dataset.name
    jobs = args.jobs if args.jobs is not None else (1 if len(pictures) < FEW else -1)
    with workers_from_args(args):
        failures = write_gallery(folder, page, pictures, details, jobs)
    if failures:
        print(failures_text(failures, len(pictures)), file=sys.stderr)
    print(f"{len(pictures) - len(failures)} images; open {folder / 'index.html'} in a browser")
    return 1 if failures else 0


def run_of(args: argparse.Namespace) -> Path | None:
    """The run that is named, or the newest; None where files are named and there is no run."""
    if args.run is not None:
        if not args.run.is_dir():
            raise FileNotFoundError(f"{args.run}: no such run folder")
        return args.run
    if args.detections or args.pseudo_labels or args.ground_truth:
        return None
    return newest_run(args.outputs)


def result_files(args: argparse.Namespace, run: Path | None, dataset: Dataset) -> dict[str, Path]:
    """Files by layer: those that are named, and else what the run has on this data set."""
    named = {"detections": args.detections, "pseudo_labels": args.pseudo_labels}
    files = {name: path for name, path in named.items() if path is not None}
    if not files and run is not None:
        files = results_of_run(run, dataset.name)
        if not files:
            logger.warning(
                "%s has no results on %s; make them with tools/test_net.py", run, dataset.name
            )
    return files


def describe(
    collected: Collected,
    coco: CocoImages,
    dataset: Dataset,
    run: Path | None,
    results: dict[str, Path],
    iou_thresh: float,
) -> Page:
    facts = [("Data set", f"{dataset.name} ({coco.path})")]
    if run is not None:
        facts.append(("Run", str(run)))
    facts += [(LAYERS[name].title, str(path)) for name, path in results.items()]
    if collected.compared is not None:
        what = LAYERS[collected.compared].title
        facts.append(("Compared with the ground truth", what))
    title = f"{dataset.name}, {run.name}" if run is not None else dataset.name
    return Page(
        title=title,
        facts=facts,
        class_names=coco.class_names,
        layers={name: layer for name, layer in LAYERS.items() if name in collected.layers},
        metrics=collected.evaluation.get("metrics", {}),
        per_class=collected.evaluation.get("per_class", {}),
        precision=collected.precision,
        iou_thresh=iou_thresh,
        history=read_lines(run / "history.jsonl") if run is not None else [],
    )


if __name__ == "__main__":
    sys.exit(main())
