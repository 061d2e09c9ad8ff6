"""Trains a Mask R-CNN on the pseudo labels of a CIM run (CIM+), and goes on where it was stopped.

The pseudo labels come from tools/generate_pseudo_labels.py; annotated masks are never looked at.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lib.config import Config, load_config, save_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.loader import train_loader
from lib.engine.checkpoint import load_checkpoint
from lib.engine.randomness import seed_everything
from lib.engine.resume import TRAINED_WITH, find_resumable
from lib.engine.runs import describe_environment, newest_checkpoint, newest_run, start_logging
from lib.engine.setup import KEEP_IN_MEMORY, share_threads
from lib.engine.trainer import NonFiniteLossError
from lib.engine.training import train
from lib.files import write_json
from lib.refine.data import InstanceDataset, open_pseudo_labels
from lib.refine.network import build_mask_rcnn
from lib.refine.training import build_refine_trainer, refinement_depends_on

logger = logging.getLogger("train_mask_rcnn")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    start_logging()
    try:
        return run(args)
    except NonFiniteLossError as error:
        logger.error("error: %s", error)
        return 1
    except (OSError, ValueError) as error:
        logger.error("error: %s", error)  # to the run's log as well, once there is one
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted before the first update")
        return 128 + signal.SIGINT


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Ctrl-C and SIGTERM end it after the update in hand, saved.",
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="of CIM; default: the newest")
    parser.add_argument("--outputs", type=Path, metavar="DIR", default=Path("Outputs"))
    parser.add_argument(
        "--pseudo-labels", type=Path, metavar="FILE", help="default: those of the run"
    )
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="default: the run's config.yaml")
    add_dataset_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: <run>/mask_rcnn; one with checkpoints is gone on with",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    cim = args.run if args.run is not None else newest_run(args.outputs)
    config = load_config(args.cfg or cim / "config.yaml", args.set)
    refine, settings = config.refine, config.run
    dataset = dataset_from_args(args)
    labels = args.pseudo_labels or cim / "pseudo_labels" / f"{dataset.name}.json"
    if not labels.is_file():
        raise FileNotFoundError(
            f"{labels}: no such pseudo labels; make them with scripts/generate_msrcnn_label.sh"
        )
    data = open_pseudo_labels(labels, dataset.images, refine.score_thresh, KEEP_IN_MEMORY)
    folder = args.output or cim / "mask_rcnn"
    trained_with = refinement_depends_on(config, data.coco)
    state = find_resumable(folder, trained_with)

    start_logging(folder / "log.txt")
    lanes = share_threads(args.device, args.threads, refine.solver.images_per_update)
    seed_everything(settings.seed)
    model = build_mask_rcnn(
        refine.model,
        refine.test,
        data.coco.num_classes,
        cim_trunk(cim) if refine.model.weights == "cim" and state is None else None,
        pretrained=state is None,
    )
    trainer = build_refine_trainer(config, model, args.device, lanes)
    if state is None:
        save_config(config, folder / "config.yaml")
        write_json(folder / "environment.json", describe_environment(), indent=2)
    else:
        trainer.load_state_dict(state)
    samples = train_loader(
        data,
        refine.input.train_scales,
        refine.input.train_flips,
        settings.seed,
        start=trainer.iteration * refine.solver.images_per_update,
        num_workers=refine.input.num_workers,
        pin_memory=args.device.startswith("cuda"),
    )
    announce(config, data, args.device, folder, trainer.iteration)
    stopped_by = train(
        trainer,
        samples,
        folder,
        refine.solver.max_iter,
        checkpoint_period=settings.checkpoint_period,
        keep_checkpoints=settings.keep_checkpoints,
        log_period=settings.log_period,
        checkpoint_extra={
            "train_size": len(data.labelled()),
            "class_names": data.coco.class_names,
            "config": config.model_dump(mode="json"),
            TRAINED_WITH: trained_with,
        },
    )
    if stopped_by is not None:
        name = signal.Signals(stopped_by).name
        logger.info("stopped by %s; the same command goes on from here", name)
        return 128 + stopped_by
    logger.info("trained: %s", folder)
    logger.info("next: python tools/test_mask_rcnn.py --run %s on the data set to test on", folder)
    return 0


def cim_trunk(run: Path) -> dict[str, Any]:
    return load_checkpoint(newest_checkpoint(run))["model"]


def announce(config: Config, data: InstanceDataset, device: str, folder: Path, done: int) -> None:
    """Says in plain words what is about to be trained on what."""
    solver, model, images = config.refine.solver, config.refine.model, len(data.labelled())
    count = sum(map(len, data.instances.values()))
    logger.info("data: %s, %d pseudo labels on %d images", data.coco.path, count, images)
    start = f"going on after {done} updates" if done else f"starting from {model.weights}"
    logger.info("network: Mask R-CNN, %s with a feature pyramid, %s", model.backbone, start)
    logger.info(
        "training: %d updates of %d images, every image about %.1f times, on %s",
        solver.max_iter,
        solver.images_per_update,
        solver.max_iter * solver.images_per_update / images,
        device,
    )
    logger.info("run folder: %s", folder)


if __name__ == "__main__":
    sys.exit(main())
