"""Shows what the method sees in one image, step by step, as one figure.

The image is one of a data set, by file name or id, or any picture, with --present naming the
classes that are in it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lib.analysis.explain import explain
from lib.analysis.inspection import Inspector, make_proposals, open_inspector, read_picture
from lib.command_line import errors_in_a_line
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages, ImageRecord
from lib.data.images import read_image
from lib.data.loader import ReadImage, no_clusters
from lib.engine.runs import newest_run, start_logging
from lib.evaluation.coco_files import read_ground_truth
from lib.proposals.store import ProposalStore
from lib.visualization.panels import save_png

logger = logging.getLogger("explain")


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    start_logging()
    run(args)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", metavar="IMAGE", help="a name or id in the data set, or a file")
    parser.add_argument(
        "--present",
        nargs="+",
        metavar="CLASS",
        help="IMAGE is a file of no data set, and these classes are in it",
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="default: the newest run")
    parser.add_argument("--outputs", type=Path, default=Path("Outputs"), metavar="DIR")
    parser.add_argument(
        "--score-thresh", type=float, default=0.3, help="of detections (default: 0.3)"
    )
    parser.add_argument(
        "--columns", type=int, metavar="N", help="panels side by side (default: as it fits)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="a PNG file, default: <run>/explain/<image>.png"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_dataset_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    folder = args.run if args.run is not None else newest_run(args.outputs)
    truth = None
    if args.present is not None:
        if args.dataset or args.json or args.labels:
            raise ValueError("--present is for a picture of no data set; leave out one of them")
        prm = Path(args.prm) if args.prm else None
        inspector = open_inspector(folder, Path(args.data_root), None, prm, args.device)
        read = read_picture(Path(args.image), args.present, inspector)
    else:
        dataset = dataset_from_args(args)
        coco = CocoImages(dataset.json)
        record = coco.images[coco.find([args.image])[0]]
        prm = dataset.prm if args.prm or dataset.prm.is_file() else None
        inspector = open_inspector(folder, dataset.root, coco, prm, args.device)
        read = read_record(record, dataset.images, ProposalStore(dataset.proposals), inspector)
        truth = true_masks(record, coco)
    if inspector.prm is None:
        logger.warning("no PRM in %s: peaks and clusters are left out", args.data_root)
    seen = inspector(read, with_peak_maps=True, with_detections=True)
    figure = explain(seen, inspector.class_names, truth, args.score_thresh, args.columns)
    target = args.output
    if target is None:
        target = folder / "explain" / f"{Path(read.record.file_name).stem}.png"
    save_png(target, figure)
    print(f"written: {target}")


def read_record(
    record: ImageRecord, folder: Path, store: ProposalStore, inspector: Inspector
) -> ReadImage:
    """An image of a data set; proposals that are not stored are made."""
    image = read_image(folder / record.file_name, record.size)
    if store.has(record.file_name):
        proposals = store.load(record.file_name, record.size)
    else:
        logger.info("%s has no proposals of it; they are made now", store.folder)
        proposals = make_proposals(image, inspector.config)
    return ReadImage(record, image, proposals, no_clusters(len(proposals)))


def true_masks(record: ImageRecord, coco: CocoImages) -> list[dict[str, Any]] | None:
    """Class index and mask of the objects of an image; None where the data set has no masks."""
    objects = read_ground_truth(coco.path, need_masks=False)["annotations"]
    if not objects:
        return None
    return [
        {**a, "class_idx": coco.category_ids.index(a["category_id"])}
        for a in objects
        if a["image_id"] == record.image_id and not a["iscrowd"]
    ]


if __name__ == "__main__":
    sys.exit(main())
