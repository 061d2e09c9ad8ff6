"""Turn detections on the training images into a COCO json to train other detectors with.

The detections come from `tools/test_net.py --image-labels`, which keeps to the classes that each
image is labelled with.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.config import load_config
from lib.data.coco import CocoImages, read_coco
from lib.engine.build import open_test_data
from lib.engine.inference import check_detections, made_with_masks
from lib.engine.runs import run_of
from lib.evaluation.pseudo_labels import (
    SEGMENTATIONS,
    count_table,
    summarise,
    to_coco_annotations,
)
from lib.files import read_json, write_json, write_text
from lib.provenance import masks_seen


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_tool(__doc__, cli.Command(generate, options), argv)


def options(parser: cli.Parser) -> None:
    cli.add_selection_arguments(parser)
    parser.add_argument(
        "--segmentation",
        choices=SEGMENTATIONS,
        default="compressed",
        help="RLE as text (default), RLE as lists of runs, or polygons for annotation tools",
    )
    cli.add_polygon_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: <run>/pseudo_labels/<data set>.json"
    )
    cli.add_result_arguments(parser)
    cli.add_config_arguments(parser, help="default: the run's config.yaml")
    cli.add_dataset_arguments(parser, needs_images=False)


def generate(args: cli.Namespace) -> None:
    dataset = cli.dataset_from_args(args)
    detections = cli.detections_from_args(args, dataset.name, image_labels=True)
    run = run_of(detections)
    if args.output:
        target = args.output
    elif run:
        target = run / "pseudo_labels" / f"{dataset.name}.json"
    else:
        target = detections.with_name(f"{detections.stem}_pseudo_labels.json")
    cfg = args.cfg
    if cfg is None and run and (run / "config.yaml").is_file():
        cfg = run / "config.yaml"
    config = load_config(cfg, [*args.set, *cli.selection_words(args)])
    check_detections(detections, dataset.json)
    regions_of, seen = None, [made_with_masks(detections)]
    if config.pseudo_labels.snap_iou is not None:
        if args.json is not None and args.images is None:
            raise ValueError(
                "pseudo_labels.snap_iou needs --images, the images whose proposals it takes"
            )
        data = open_test_data(dataset, CocoImages(dataset.json))
        regions_of = data.store.load_regions
        seen += data.made_from.values()
    labels = to_coco_annotations(
        read_json(detections),
        read_coco(dataset.json),
        config.pseudo_labels,
        args.segmentation,
        name=str(detections),
        tolerance=args.polygon_tolerance,
        min_part=args.polygon_min_part,
        regions_of=regions_of,
    )
    labels["info"] |= masks_seen(*seen)
    write_json(target, labels)
    counts = target.with_suffix(".counts.csv")
    write_csv(counts, count_table(labels))
    print(f"{summarise(labels)}\nwritten: {target}\ncounts per image and class: {counts}")


def write_csv(path: Path, rows: Sequence[Sequence[str | int]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    sys.exit(main())
