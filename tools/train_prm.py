"""Trains the peak response network (PRM) of a data set on its image-level labels."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.config import Config, load_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.engine.checkpoint import seed_everything
from lib.engine.runs import describe_environment, start_logging
from lib.files import atomic_file
from lib.prm.clusters import ClusterStore
from lib.prm.images import SquareImages
from lib.prm.network import build_prm
from lib.prm.published import imported_clusters
from lib.prm.train import average_precisions, score_images, train_prm
from lib.proposals.store import ProposalStore

logger = logging.getLogger("train_prm")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", metavar="FILE", help="configuration (default: the published one)")
    add_dataset_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="where to write it (default: --prm)")
    parser.add_argument("--overwrite", action="store_true", help="train again what is finished")
    parser.add_argument(
        "--if-needed",
        action="store_true",
        help="do nothing where all clusters were imported and CIM does not start from the PRM",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch, default: its own")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    args = parser.parse_args(argv)
    start_logging()
    try:
        return run(args)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same again to go on after the last epoch", file=sys.stderr)
        return 128 + signal.SIGINT


def run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = load_config(args.cfg, args.set)
    dataset = dataset_from_args(args)
    output = Path(args.output) if args.output else dataset.prm
    coco = CocoImages(dataset.json)
    coco.check_files(dataset.images)
    coco.warn_of_labels()
    labelled = [record for record in coco.images if record.image_labels.any()]
    if coco.without_labels:
        logger.info("%s: %d images without labels are skipped", coco.path, coco.without_labels)
    if args.if_needed and config.model.weights != "prm":
        proposals, clusters = ProposalStore(dataset.proposals), ClusterStore(dataset.clusters)
        if len(imported_clusters(labelled, proposals, clusters)) == len(labelled):
            print(f"{dataset.clusters}: the clusters of all images were imported, none is needed")
            return 0
    images = SquareImages(labelled, dataset.images, config.prm.image_size)
    made_from = describe(config, images)
    if output.is_file() and not args.overwrite:
        return check_finished(output, made_from, coco.num_classes)

    seed_everything(config.run.seed)
    net = build_prm(config.prm, coco.num_classes)
    unfinished = output.with_suffix(".unfinished.pth")
    if args.overwrite:
        unfinished.unlink(missing_ok=True)
    workers = config.input.num_workers
    train_prm(net, images, config.prm, config.run.seed, unfinished, made_from, args.device, workers)
    scores = score_images(net, images, config.prm.images_per_update, args.device, workers)
    precisions = average_precisions(scores, images.image_labels.numpy())
    mean = float(np.nanmean(precisions))
    with atomic_file(output) as file:
        content = {
            "model": {name: tensor.cpu() for name, tensor in net.state_dict().items()},
            "class_names": coco.class_names,
            "made_from": made_from,
            "config": config.model_dump(mode="json"),
            "environment": describe_environment(),
            "train_class_map": mean,
        }
        torch.save(content, file)
    unfinished.unlink(missing_ok=True)
    print(f"class mAP on the training labels (not held out): {mean:.3f}")
    print(f"{output}: written")
    return 0


def describe(config: Config, images: SquareImages) -> dict[str, Any]:
    """What the trained network depends on, as plain values."""
    settings = config.prm.model_dump(
        mode="json", exclude={"peak_thresh", "peak_thresh_relative", "clusters"}
    )
    return {
        **{f"prm.{name}": value for name, value in settings.items()},
        "run.seed": config.run.seed,
        "images": len(images),
        "images and labels": images.digest(),
    }


def check_finished(path: Path, made_from: dict[str, Any], num_classes: int) -> int:
    """Says that there is nothing to do.

    Raises:
        ValueError: the file at `path` is no PRM, or the result of other settings or data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        head = content.get("model", content)["0.classifier.0.weight"]
    except Exception as error:  # torch.load has no error type of its own
        raise ValueError(f"{path}: not a PRM checkpoint ({error}); remove it") from error
    if len(head) != num_classes:
        raise ValueError(
            f"{path}: a PRM of {len(head)} classes, the data set has {num_classes}; give "
            "--overwrite or another --output"
        )
    before = content.get("made_from", made_from)
    changed = [name for name in made_from if before.get(name) != made_from[name]]
    if changed:
        told = ", ".join(f"{n} was {before.get(n)}, is {made_from[n]}" for n in changed)
        raise ValueError(f"{path}: trained otherwise: {told}; give --overwrite or another --output")
    print(f"{path}: finished before, nothing to do (--overwrite trains it again)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
