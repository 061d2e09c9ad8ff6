"""Train CIM on a data set's image-level labels, or resume an interrupted training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.analysis.mining import mining_view
from lib.config import load_config
from lib.data.coco import CocoImages
from lib.engine.build import (
    build_trainer,
    initial_model,
    kept_features,
    open_training_data,
    share_threads,
    training_made_from,
)
from lib.engine.checkpoint import seed_everything
from lib.engine.distributed import Ranks
from lib.engine.runs import new_run, newest_run
from lib.engine.trainer import Trainer
from lib.engine.training import TrainingRun, train
from lib.files import first_few
from lib.modeling.model_builder import build_model


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_tool(__doc__, cli.Command(run, options, distributed=True), argv)


def options(parser: cli.Parser) -> None:
    cli.add_config_arguments(parser)
    cli.add_dataset_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: Outputs/<cfg>/<date and time>"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume --output, or the newest run of --cfg; an --output with checkpoints is always "
        "resumed",
    )
    cli.add_train_overwrite(parser)
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from the whole network in a checkpoint"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also write a trace of a few updates by torch's profiler to <output>/profile",
    )
    cli.add_device_arguments(parser)


def run(args: cli.Namespace, ranks: Ranks) -> int:
    config = load_config(args.cfg, args.set)
    dataset = cli.dataset_from_args(args, ranks)
    coco = CocoImages(dataset.json)
    data = open_training_data(dataset, coco, config.loss.pcl != 0, ranks)
    made_from = training_made_from(config, dataset, data, args.weights) if ranks.is_first else None
    training = TrainingRun(
        folder=ranks.from_first(run_folder(args)),
        config=config,
        settings=config,
        made_from=ranks.from_first(made_from),
        dataset_name=dataset.name,
        class_names=coco.class_names,
        train_size=len(coco) - coco.without_labels,
        ranks=ranks,
    )
    state = training.open(must_exist=args.resume, overwrite=args.overwrite)

    side_by_side = ranks.count == 1 and not config.runtime.images_together
    at_most = config.solver.images_per_update if side_by_side else 1
    lanes = share_threads(args.device, args.threads, at_most)
    seed_everything(config.run.seed)
    if state is None:
        model = initial_model(config, dataset, coco.num_classes, args.weights)
    else:
        model = build_model(config.model, coco.num_classes, pretrained=False)
    limit = config.runtime.feature_cache_gb
    kept = kept_features(config, limit, model.Conv_Body, data, dataset.root, ranks)
    trainer = build_trainer(config, model, ranks.device, lanes, ranks, kept)
    training.begin(trainer, state)
    samples = training.samples(data, trainer)
    announce(training, coco, args.weights, trainer)
    draws = ranks.is_first and config.run.image_period > 0 and config.model.num_stages > 0
    stopped_by = train(
        trainer,
        samples,
        training.folder,
        config.solver.max_iter,
        config.run,
        training.about,
        picture=mining_view(config, data, ranks.device) if draws else None,
        profile=args.profile,
    )
    code = training.end(trainer, stopped_by)
    if code == 0:
        cli.say_next(f"tools/test_net.py --run {training.folder} on the data set to test on")
    return code


def run_folder(args: cli.Namespace) -> Path:
    if args.output is not None:
        return args.output
    stem = args.cfg.stem if args.cfg else "default"
    return newest_run(Path("Outputs") / stem) if args.resume else new_run(Path("Outputs"), stem)


def announce(
    training: TrainingRun, coco: CocoImages, weights: Path | None, trainer: Trainer
) -> None:
    model, count = training.config.model, training.train_size
    backbone = model.backbone_args["name"] if model.backbone == "timm" else model.backbone
    classes = first_few(coco.class_names, 6)
    training.announce(
        f"{coco.path}, {count} images, {coco.num_classes} classes: {classes}",
        f"{backbone}, {model.num_stages} refinement stages on "
        f"{training.config.mining.labels.upper()} labels",
        weights or model.weights,
        trainer,
    )


if __name__ == "__main__":
    sys.exit(main())
