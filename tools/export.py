"""Results in the form that other tools and servers take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.config import load_config
from lib.data.coco import CocoImages, read_coco
from lib.engine.checkpoint import MADE_FROM, CheckpointError, load_checkpoint, load_model
from lib.engine.runs import find_checkpoint, newest_run
from lib.evaluation.coco_files import by_image
from lib.evaluation.submission import submission_name, write_submission
from lib.evaluation.yolo import write_yolo
from lib.files import read_json
from lib.provenance import file_fingerprint, fingerprint, masks_seen
from lib.refine.mask_rcnn import build_mask_rcnn
from lib.refine.onnx_export import write_onnx
from lib.refine.training import is_mask_rcnn


def main(argv: Sequence[str] | None = None) -> int:
    commands = {
        "onnx": cli.Command(onnx, onnx_options),
        "yolo": cli.Command(yolo, yolo_options),
        "submission": cli.Command(submission, submission_options),
    }
    return cli.run_tool(__doc__, commands, argv)


def onnx_options(parser: cli.Parser) -> None:
    cli.add_run_arguments(parser, "run of a Mask R-CNN; default: mask_rcnn in the newest run")
    parser.add_argument("--step", type=int, metavar="N", help="default: the newest checkpoint")
    cli.add_config_arguments(parser, help="default: the run's config.yaml")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: <run>/mask_rcnn.onnx")


def onnx(args: cli.Namespace) -> None:
    """Write a trained Mask R-CNN (CIM+) as ONNX, for programs without PyTorch."""
    run = args.run if args.run is not None else newest_run(args.outputs) / "mask_rcnn"
    checkpoint = find_checkpoint(run, args.step)
    refine = load_config(args.cfg or run / "config.yaml", args.set).refine
    state = load_checkpoint(checkpoint)
    if not is_mask_rcnn(state):
        raise CheckpointError(
            f"{checkpoint}: not a Mask R-CNN, the only network that is exported (CIM itself needs "
            "proposals); train one on its masks with scripts/refine_msrcnn.sh"
        )
    names = state["class_names"]
    model = build_mask_rcnn(refine.model, refine.test, len(names), pretrained=False)
    load_model(model, state["model"], checkpoint, len(names))
    path = args.output or run / "mask_rcnn.onnx"
    made_from = {
        "weights": fingerprint(state["model"]),
        "step": state["step"],
        **masks_seen(state.get(MADE_FROM)),
    }
    write_onnx(path, model, refine, names, made_from)
    print(f"{len(names)} classes, images of long side {refine.input.test_scale}\nwritten: {path}")


def yolo_options(parser: cli.Parser) -> None:
    parser.add_argument(
        "--pseudo-labels", type=Path, metavar="FILE", help="default: those of the run"
    )
    cli.add_polygon_arguments(parser)
    parser.add_argument(
        "--copy-images", action="store_true", help="copy images, for a folder that is to be moved"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: <pseudo labels>_yolo")
    cli.add_run_arguments(parser)
    cli.add_dataset_arguments(parser)


def yolo(args: cli.Namespace) -> None:
    """Write pseudo labels as a data set in YOLO's segmentation format.

    With --pseudo-labels, --images is enough to name the data set.
    """
    if args.pseudo_labels and not (args.dataset or args.json or args.labels):
        args.json = args.pseudo_labels
    dataset = cli.dataset_from_args(args)
    labels = args.pseudo_labels
    if labels is None:
        labels = cli.run_from_args(args) / "pseudo_labels" / f"{dataset.name}.json"
    if not labels.is_file():
        raise FileNotFoundError(
            f"{labels}: no such pseudo labels; make them with scripts/generate_msrcnn_label.sh"
        )
    folder = args.output or labels.with_name(f"{labels.stem}_yolo")
    content = read_json(labels)
    info = content.get("info") if isinstance(content, dict) else None
    seen = masks_seen(info if isinstance(info, dict) else None)
    images, instances = write_yolo(
        folder,
        CocoImages(labels),
        dataset.images,
        by_image(content, read_coco(labels), str(labels)),
        {"pseudo_labels": file_fingerprint(labels), **seen},
        args.polygon_tolerance,
        args.polygon_min_part,
        args.copy_images,
    )
    print(f"{instances} instances on {images} images\nwritten: {folder / 'data.yaml'}")


def submission_options(parser: cli.Parser) -> None:
    parser.add_argument(
        "--algorithm", metavar="NAME", default="CIM", help="as the server's list is to show it"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: beside the detections")
    cli.add_result_arguments(parser)
    cli.add_dataset_arguments(parser, default="coco2017test", needs_images=False)


def submission(args: cli.Namespace) -> None:
    """Pack detections on COCO test-dev for its evaluation server.

    The annotations of test-dev are not public; the server compares the detections with them.
    """
    dataset = cli.dataset_from_args(args)
    name = submission_name(dataset.json, args.algorithm)
    detections = cli.detections_from_args(args, dataset.name)
    path = (args.output or detections.parent) / f"{name}.zip"
    content = read_coco(dataset.json, annotations=False)
    count, images = write_submission(read_json(detections), content, path, str(detections))
    print(
        f"{count} detections on {images} of {len(content['images'])} images\n"
        f"written: {path}\nupload it as it is at https://cocodataset.org/#upload (segm)"
    )


if __name__ == "__main__":
    sys.exit(main())
