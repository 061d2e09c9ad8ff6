"""Draws detections, pseudo labels or annotations over their images, one PNG file each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.command_line import errors_in_a_line
from lib.data.catalog import Dataset, add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages, ImageRecord, read_coco
from lib.data.images import read_image
from lib.engine.runs import add_result_arguments, detections_from_args, run_from_args, run_of
from lib.evaluation.coco_files import by_image
from lib.files import read_json
from lib.proposals import rle
from lib.visualization.draw import draw_instances
from lib.visualization.panels import contact_sheet, save_png, side_by_side


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    visualize(args)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_argument_group("what to draw", "detections, unless another is named")
    either = what.add_mutually_exclusive_group()
    either.add_argument("--pseudo-labels", action="store_true", help="those of the run")
    either.add_argument("--ground-truth", action="store_true", help="the data set's own masks")
    what.add_argument(
        "--score-thresh", type=float, default=0.3, help="leaves out what is below (default: 0.3)"
    )
    what.add_argument("--image", nargs="+", default=[], metavar="ID|NAME", help="these images only")
    what.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    what.add_argument("--compare", action="store_true", help="the data set's masks beside it")
    what.add_argument("--color-by", choices=("class", "instance"), default="class")
    what.add_argument(
        "--output", type=Path, metavar="DIR", help="default: visual/<data set> in the run"
    )
    what.add_argument(
        "--sheet", type=int, default=12, metavar="N", help="pictures on overview.png (default: 12)"
    )
    add_result_arguments(parser, "COCO result or annotation file")
    add_dataset_arguments(parser)
    return parser.parse_args(argv)


def visualize(args: argparse.Namespace) -> None:
    dataset = dataset_from_args(args)
    coco = CocoImages(dataset.json, require_annotations=False)
    chosen = coco.find(args.image) if args.image else range(len(coco))
    images = [coco.images[number] for number in chosen[: args.limit]]
    kind, source = source_from_args(args, dataset)
    folder = args.output or default_folder(args, dataset)
    content = read_coco(dataset.json, annotations=False)
    drawn = by_image(read_json(source), content, str(source), args.score_thresh)
    layers = [(kind.replace("_", " "), drawn)]
    if args.compare and kind != "ground_truth":
        truth = by_image(read_json(dataset.json), content, str(dataset.json))
        layers.insert(0, ("ground truth", truth))

    sheet, instances = [], 0
    for record in tqdm(images, desc="drawing", unit="image"):
        image = read_image(dataset.images / record.file_name, record.size)
        panels = [
            (title, draw(image, entries.get(record.image_id, []), coco, args.color_by))
            for title, entries in layers
        ]
        picture = side_by_side(panels) if len(panels) > 1 else panels[0][1]
        save_png(target(folder, record, kind), picture)
        instances += len(layers[-1][1].get(record.image_id, []))
        if len(sheet) < args.sheet:
            sheet.append(picture)
    if len(sheet) > 1:
        columns = 2 if len(layers) > 1 else 4
        save_png(folder / "overview.png", contact_sheet(sheet, columns, 1600 // columns))
    limit = "" if kind == "ground_truth" else f" (score {args.score_thresh:g} or more)"
    print(f"{len(images)} pictures with {instances} instances{limit} in {folder}")


def source_from_args(args: argparse.Namespace, dataset: Dataset) -> tuple[str, Path]:
    """What is drawn, and the file it is read from."""
    if args.ground_truth:
        return "ground_truth", dataset.json
    if args.pseudo_labels:
        if args.detections:
            return "pseudo_labels", args.detections
        return "pseudo_labels", run_from_args(args) / "pseudo_labels" / f"{dataset.name}.json"
    return "detections", detections_from_args(args, dataset.name)


def default_folder(args: argparse.Namespace, dataset: Dataset) -> Path:
    """In the run that is drawn; annotations belong to none, other files to where they lie."""
    if args.detections:
        base = run_of(args.detections) or args.detections.parent
    elif args.ground_truth and not args.run:
        base = args.outputs
    else:
        base = run_from_args(args)
    return base / "visual" / dataset.name


def draw(
    image: np.ndarray, entries: list[dict[str, Any]], coco: CocoImages, color_by: str
) -> np.ndarray:
    masks = [rle.rle_to_mask(entry["segmentation"]) for entry in entries]
    scores = [entry["score"] for entry in entries]
    return draw_instances(
        image,
        np.array(masks, dtype=bool).reshape(-1, *image.shape[:2]),
        [coco.category_ids.index(entry["category_id"]) for entry in entries],
        None if None in scores else scores,
        coco.class_names,
        color_by,
    )


def target(folder: Path, record: ImageRecord, kind: str) -> Path:
    """One file per image and kind; what the three kinds draw can lie beside each other."""
    path = folder / PurePath(record.file_name)
    suffix = "" if kind == "detections" else f"_{kind}"
    return path.with_name(f"{path.stem}{suffix}.png")


if __name__ == "__main__":
    sys.exit(main())
