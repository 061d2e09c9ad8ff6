"""Score the proposals of a data set with a trained network and write the detections."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.config import load_config
from lib.data.coco import CocoImages
from lib.engine.build import (
    build_detector,
    detections_made_from,
    images_ahead,
    open_test_data,
    trained_model,
)
from lib.engine.checkpoint import load_checkpoint
from lib.engine.distributed import Ranks
from lib.engine.inference import detect_dataset
from lib.engine.runs import find_checkpoint
from lib.evaluation.coco_files import read_ground_truth

logger = logging.getLogger("test_net")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_tool(__doc__, cli.Command(test, options, distributed=True), argv)


def options(parser: cli.Parser) -> None:
    cli.add_run_arguments(parser, "default: the newest with weights")
    parser.add_argument("--step", type=int, metavar="N", help="default: the newest checkpoint")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a checkpoint file instead of a run's"
    )
    cli.add_config_arguments(parser, help="default: the run's config.yaml")
    cli.add_dataset_arguments(parser)
    parser.add_argument(
        "--tta",
        choices=["config", "none"],
        default="config",
        help="passes over an image: as configured, or one at the largest scale",
    )
    parser.add_argument(
        "--image-labels",
        action="store_true",
        help="detect only the classes an image is labelled with, as many as there are: for making "
        "pseudo labels",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: <run>/test/<data set>/detections[_image_labels].json",
    )
    cli.add_device_arguments(parser)


def test(args: cli.Namespace, ranks: Ranks) -> None:
    dataset = cli.dataset_from_args(args, ranks)
    folder, checkpoint = run_and_checkpoint(args)
    config = load_config(args.cfg or folder / "config.yaml", args.set)
    output = args.output
    if output is None:
        stem = "detections_image_labels" if args.image_labels else "detections"
        output = folder / "test" / dataset.name / f"{stem}.json"

    coco = CocoImages(dataset.json, require_annotations=args.image_labels)
    if not args.image_labels:
        read_ground_truth(dataset.json, need_masks=False)  # find faults now, not at the end
    data = open_test_data(dataset, coco, ranks)
    state = load_checkpoint(checkpoint)
    model = trained_model(config, state, checkpoint, coco.class_names)
    detector = build_detector(
        config, model, coco.category_ids, ranks.device, args.tta == "config", args.image_labels
    )
    passes = len(detector.scales) * len(detector.flips)
    logger.info("network: %s after %s updates", checkpoint, state.get("step", "?"))
    logger.info("data: %s, %d images, %d passes over each", coco.path, len(coco), passes)
    made_from, of_images = detections_made_from(
        config, state, data, args.tta == "config", args.image_labels
    )
    ahead = images_ahead(args.device, args.threads, config.input.num_workers)
    done = detect_dataset(detector, data, output, made_from, of_images, ahead, ranks)
    logger.info("%s: %s", "written" if done else "complete already, nothing to do", output)
    if coco.without_labels == len(coco):
        cli.say_next(f"tools/export.py submission --detections {output} for test-dev")
    elif not args.image_labels:
        cli.say_next(f"tools/evaluate.py --detections {output} on the same data set")
    else:
        cli.say_next(f"tools/generate_pseudo_labels.py --detections {output}")


def run_and_checkpoint(args: cli.Namespace) -> tuple[Path, Path]:
    """The run folder and the checkpoint that a command line names."""
    if args.weights is not None:
        if args.step is not None or args.run is not None:
            raise ValueError("--weights names a checkpoint itself; leave out --run and --step")
        if args.cfg is None or args.output is None:
            raise ValueError("--weights needs --cfg, what it was trained with, and --output")
        return args.weights.parent, args.weights
    folder = cli.run_from_args(args)
    return folder, find_checkpoint(folder, args.step)


if __name__ == "__main__":
    sys.exit(main())
