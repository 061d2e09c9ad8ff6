"""Runs a trained Mask R-CNN (CIM+) over a data set and writes the detections, as test_net does."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lib.command_line import errors_in_a_line
from lib.config import load_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.engine.build import images_ahead
from lib.engine.checkpoint import CheckpointError, load_checkpoint, load_model
from lib.engine.distributed import Ranks, joined_ranks
from lib.engine.inference import detect_dataset
from lib.engine.runs import checkpoint_at, newest_checkpoint, newest_run, start_logging
from lib.files import file_state
from lib.refine.data import InstanceDataset
from lib.refine.detect import MaskRCNNDetector
from lib.refine.network import build_mask_rcnn
from lib.refine.training import is_mask_rcnn

logger = logging.getLogger("test_mask_rcnn")


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    with joined_ranks(args.device) as ranks:
        start_logging(rank=ranks.rank)
        run(args, ranks)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Interrupted and run again, it goes on where it was. By tools/launch.py (torchrun) "
        "several processes share the images.",
    )
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="default: mask_rcnn in the newest run"
    )
    parser.add_argument("--outputs", type=Path, metavar="DIR", default=Path("Outputs"))
    parser.add_argument("--step", type=int, metavar="N", help="default: the newest checkpoint")
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="default: the run's config.yaml")
    add_dataset_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: <run>/test/<data set>/detections.json"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, ranks: Ranks) -> None:
    dataset = dataset_from_args(args)
    folder = args.run if args.run is not None else newest_run(args.outputs) / "mask_rcnn"
    checkpoint = newest_checkpoint(folder)
    if args.step is not None:
        checkpoint = checkpoint_at(folder, args.step)
    config = load_config(args.cfg or folder / "config.yaml", args.set)
    refine = config.refine
    output = args.output or folder / "test" / dataset.name / "detections.json"
    coco = CocoImages(dataset.json, require_annotations=False)
    coco.check_files(dataset.images)

    state = load_checkpoint(checkpoint)
    if not is_mask_rcnn(state):
        raise CheckpointError(f"{checkpoint}: not a Mask R-CNN; take tools/test_net.py for CIM")
    model = build_mask_rcnn(refine.model, refine.test, coco.num_classes, pretrained=False)
    load_model(model, state["model"], checkpoint, coco.num_classes)
    logger.info("network: %s after %s updates", checkpoint, state.get("step", "?"))
    logger.info("data: %s, %d images", coco.path, len(coco))
    detector = MaskRCNNDetector(model, coco.category_ids, refine, ranks.device)
    ahead = images_ahead(args.device, args.threads, refine.input.num_workers)
    made_from = {
        "checkpoint": file_state(checkpoint),
        "json": file_state(coco.path),
        "scale": refine.input.test_scale,
        "test": refine.test.model_dump(mode="json"),
    }
    done = detect_dataset(
        detector,
        InstanceDataset(coco, dataset.images, {}),
        output,
        ranks.from_first(made_from),
        ahead,
        ranks,
    )
    logger.info("%s: %s", "written" if done else "complete already, nothing to do", output)
    logger.info("next: python tools/evaluate.py --detections %s on the same data set", output)


if __name__ == "__main__":
    sys.exit(main())
