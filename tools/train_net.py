"""Trains CIM on a data set's image-level labels, and goes on where an interrupted run stopped."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from lib.config import Config, load_config, save_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.data.loader import train_loader
from lib.engine.distributed import Ranks, joined_ranks
from lib.engine.randomness import seed_everything
from lib.engine.resume import TRAINED_WITH, find_resumable
from lib.engine.runs import (
    claim_folder,
    describe_environment,
    new_run,
    newest_checkpoint,
    newest_run,
    start_logging,
)
from lib.engine.setup import (
    build_trainer,
    initial_model,
    mining_view,
    open_training_data,
    share_threads,
    training_depends_on,
)
from lib.engine.trainer import NonFiniteLossError
from lib.engine.training import train
from lib.files import write_json
from lib.modeling.model_builder import build_model

logger = logging.getLogger("train_net")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        with joined_ranks(args.device) as ranks:
            start_logging(rank=ranks.rank)
            return run(args, ranks)
    except (OSError, ValueError) as error:
        logger.error("error: %s", error)  # to the run's log as well, once there is one
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted before the first update")
        return 128 + signal.SIGINT


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Ctrl-C and SIGTERM end it after the update in hand, saved, with code 130 or 143; "
        "NaN or infinity with 1, other errors with 2. By tools/launch.py (torchrun) several "
        "processes train together.",
    )
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="default: the published numbers")
    add_dataset_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: Outputs/<cfg>/<date and time>"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with --output, or with the newest run of --cfg; an --output with checkpoints "
        "is always gone on with",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from the whole network in a checkpoint"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also write a trace of a few updates by torch's profiler to <output>/profile",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, ranks: Ranks) -> int:
    config = load_config(args.cfg, args.set)
    dataset = dataset_from_args(args)
    coco = CocoImages(dataset.json)
    folder = ranks.from_first(run_folder(args))
    trained_with = training_depends_on(config, dataset, coco)
    state = find_resumable(folder, trained_with)
    check_shared(folder, ranks, state)
    if args.resume and state is None:
        raise ValueError(f"--resume: {folder} has no checkpoint to go on with")
    data = open_training_data(dataset, coco, with_clusters=config.loss.pcl != 0)

    if ranks.is_first:
        claim_folder(folder)
    start_logging(folder / "log.txt", ranks.rank)
    side_by_side = ranks.count == 1 and not config.runtime.images_together
    at_most = config.solver.images_per_update if side_by_side else 1
    lanes = share_threads(args.device, args.threads, at_most)
    seed_everything(config.run.seed)
    if state is None:
        model = initial_model(config, dataset, coco.num_classes, args.weights)
        trainer = build_trainer(config, model, ranks.device, lanes, ranks)
        if ranks.is_first:
            save_config(config, folder / "config.yaml")
            write_json(folder / "environment.json", describe_environment(), indent=2)
    else:
        model = build_model(config.model, coco.num_classes, pretrained=False)
        trainer = build_trainer(config, model, ranks.device, lanes, ranks)
        trainer.load_state_dict(state)
    solver, settings = config.solver, config.run
    samples = train_loader(
        data,
        config.input.train_scales,
        config.input.train_flips,
        settings.seed,
        start=trainer.first_sample,
        step=ranks.count,
        num_workers=config.input.num_workers,
        pin_memory=ranks.device.startswith("cuda"),
    )
    announce(config, coco, args, folder, trainer.iteration, ranks)
    draws = ranks.is_first and settings.image_period > 0 and config.model.num_stages > 0
    begun, done_before = time.monotonic(), trainer.iteration
    try:
        stopped_by = train(
            trainer,
            samples,
            folder,
            solver.max_iter,
            checkpoint_period=settings.checkpoint_period,
            keep_checkpoints=settings.keep_checkpoints,
            log_period=settings.log_period,
            checkpoint_extra={
                "train_size": len(coco) - coco.without_labels,
                "class_names": coco.class_names,
                "config": config.model_dump(mode="json"),
                TRAINED_WITH: trained_with,
            },
            image_period=settings.image_period,
            picture=mining_view(config, data, ranks.device) if draws else None,
            profile=args.profile,
        )
    except NonFiniteLossError as error:
        if ranks.is_first:  # all have noticed
            logger.error("error: %s", error)
        return 1
    if stopped_by is not None:
        name = signal.Signals(stopped_by).name
        logger.info("stopped by %s; go on with --output %s and the same options", name, folder)
        return 128 + stopped_by
    images = (trainer.iteration - done_before) * solver.images_per_update
    farewell(folder, images, time.monotonic() - begun)
    return 0


def run_folder(args: argparse.Namespace) -> Path:
    if args.output is not None:
        return args.output
    stem = args.cfg.stem if args.cfg else "default"
    return newest_run(Path("Outputs") / stem) if args.resume else new_run(Path("Outputs"), stem)


def check_shared(folder: Path, ranks: Ranks, state: Mapping[str, Any] | None) -> None:
    """Raises ValueError where not all ranks see the same checkpoint in the run folder."""
    steps = ranks.gather(state and state["step"])
    if len(set(steps)) > 1:
        raise ValueError(
            f"{folder}: the processes see checkpoints of different updates there ({steps}); the "
            "run folder must lie on a disk that all machines share"
        )


def farewell(folder: Path, images: int, seconds: float) -> None:
    """One line that says what was done and where everything is, and one on what comes next."""
    pictures = folder / "mining"
    logger.info(
        "trained: %s; %d images in %s; weights %s, curves %s (tensorboard --logdir %s)%s, log %s",
        folder,
        images,
        timedelta(seconds=round(seconds)),
        newest_checkpoint(folder),
        folder / "history.jsonl",
        folder,
        f", pictures {pictures}" if pictures.is_dir() else "",
        folder / "log.txt",
    )
    logger.info("next: python tools/test_net.py --run %s on the data set to test on", folder)


def announce(
    config: Config,
    coco: CocoImages,
    args: argparse.Namespace,
    folder: Path,
    done: int,
    ranks: Ranks,
) -> None:
    """Says in plain words what is about to be trained on what."""
    solver, model = config.solver, config.model
    images = len(coco) - coco.without_labels
    classes = ", ".join(coco.class_names[:6]) + (", ..." if coco.class_names[6:] else "")
    start = f"starting from {args.weights or model.weights}"
    if done:
        start = f"going on after {done} updates"
    logger.info("data: %s, %d images, %d classes: %s", coco.path, images, coco.num_classes, classes)
    logger.info(
        "network: %s, %d refinement stages on %s labels, %s",
        model.backbone,
        model.num_stages,
        config.mining.labels.upper(),
        start,
    )
    logger.info(
        "training: %d updates of %d images, every image about %.1f times, on %s%s",
        solver.max_iter,
        solver.images_per_update,
        solver.max_iter * solver.images_per_update / images,
        f"{ranks.count} x " if ranks.count > 1 else "",
        args.device,
    )
    logger.info("run folder: %s", folder)


if __name__ == "__main__":
    sys.exit(main())
