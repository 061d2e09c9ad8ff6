"""CIM+: a Mask R-CNN or Mask2Former trained on the pseudo labels of CIM."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.config import load_config
from lib.data.coco import CocoImages
from lib.engine.build import (
    KEEP_IN_MEMORY,
    build_refine_trainer,
    images_ahead,
    keep_maps,
    memory_format,
    share_threads,
)
from lib.engine.checkpoint import (
    MADE_FROM,
    CheckpointError,
    load_checkpoint,
    load_model,
    seed_everything,
)
from lib.engine.distributed import Ranks
from lib.engine.inference import detect_dataset
from lib.engine.runs import find_checkpoint, newest_run
from lib.engine.training import TrainingRun, train
from lib.provenance import fingerprint, masks_seen
from lib.refine.data import InstanceDataset, open_pseudo_labels
from lib.refine.detect import InstanceDetector
from lib.refine.second_stage import second_stage
from lib.refine.training import is_cim, refinement_made_from

logger = logging.getLogger("refine")


def main(argv: Sequence[str] | None = None) -> int:
    commands = {
        "train": cli.Command(train_network, train_options, distributed=True),
        "test": cli.Command(test_network, test_options, distributed=True),
    }
    return cli.run_tool(__doc__, commands, argv)


def train_options(parser: cli.Parser) -> None:
    cli.add_run_arguments(parser, "run of CIM; default: the newest")
    parser.add_argument(
        "--pseudo-labels", type=Path, metavar="FILE", help="default: those of the run"
    )
    parser.add_argument(
        "--corrected",
        type=Path,
        metavar="FILE",
        help="a COCO json of images whose labels somebody has corrected: they take the place of "
        "pseudo labels there, and count as complete",
    )
    cli.add_config_arguments(parser, help="default: the run's config.yaml")
    cli.add_dataset_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: <run>/<network>; resumes one with checkpoints",
    )
    cli.add_train_overwrite(parser)
    cli.add_device_arguments(parser)


def train_network(args: cli.Namespace, ranks: Ranks) -> int:
    """Train a network on the pseudo labels of a CIM run (CIM+), or resume its training.

    The configuration names the network (`refine.model.network`): mask_rcnn or mask2former. The
    pseudo labels come from tools/generate_pseudo_labels.py; annotated masks are read only from a
    file given as --corrected, which the record of the training and its results tell.
    """
    cim = ranks.from_first(cli.run_from_args(args))
    config = load_config(args.cfg or cim / "config.yaml", args.set)
    refine, network = config.refine, second_stage(config.refine.model.network)
    dataset = cli.dataset_from_args(args, ranks)
    labels = args.pseudo_labels or cim / "pseudo_labels" / f"{dataset.name}.json"
    if not labels.is_file():
        raise FileNotFoundError(
            f"{labels}: no such pseudo labels; make them with scripts/generate_msrcnn_label.sh"
        )
    data = open_pseudo_labels(labels, dataset.images, KEEP_IN_MEMORY, args.corrected)
    if data.box_only and not network.boxes:
        raise ValueError(
            f"{args.corrected}: {data.box_only} annotations are boxes without a mask, which "
            f"{network.title} cannot learn from; draw their masks, or set refine.model.network "
            "mask_rcnn"
        )
    data.add_mosaics(refine.input.mosaics, config.run.seed)
    cim_weights = None
    if refine.model.weights == "cim":
        cim_weights = load_checkpoint(find_checkpoint(cim))["model"]
    training = TrainingRun(
        folder=args.output or cim / refine.model.network,
        config=config,
        settings=refine,
        made_from=ranks.from_first(refinement_made_from(config, dataset, data, cim_weights)),
        dataset_name=dataset.name,
        class_names=data.coco.class_names,
        train_size=len(data.drawn()),
        ranks=ranks,
    )
    state = training.open(overwrite=args.overwrite)

    at_most = refine.solver.images_per_update if ranks.count == 1 else 1
    lanes = share_threads(args.device, args.threads, at_most)
    seed_everything(config.run.seed)
    model = network.build(
        refine.model,
        refine.test,
        data.coco.num_classes,
        cim_weights if state is None else None,
        pretrained=state is None,
    )
    keep_maps(config, model.train(), data, dataset.root, ranks)
    trainer = build_refine_trainer(config, model, ranks.device, lanes, ranks)
    training.begin(trainer, state)
    samples = training.samples(data, trainer)
    count = sum(map(len, data.instances.values()))
    training.announce(
        f"{data.coco.path}, {count} {'labels' if args.corrected else 'pseudo labels'} on "
        f"{len(data.labelled())} images",
        f"{network.title}, {refine.model.backbone} with a feature pyramid",
        refine.model.weights,
        trainer,
    )
    max_iter = refine.solver.max_iter
    stopped_by = train(trainer, samples, training.folder, max_iter, config.run, training.about)
    code = training.end(trainer, stopped_by)
    if code == 0:
        cli.say_next(f"tools/refine.py test --run {training.folder} on the data set to test on")
    return code


def test_options(parser: cli.Parser) -> None:
    cli.add_run_arguments(parser, "default: <network> in the newest run")
    parser.add_argument("--step", type=int, metavar="N", help="default: the newest checkpoint")
    cli.add_config_arguments(parser, help="default: the run's config.yaml")
    cli.add_dataset_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: <run>/test/<data set>/detections.json"
    )
    cli.add_device_arguments(parser)


def test_network(args: cli.Namespace, ranks: Ranks) -> None:
    """Run a network of `train` over a data set and write the detections, as test_net does."""
    dataset = cli.dataset_from_args(args, ranks)
    folder = args.run
    if folder is None:
        cim = newest_run(args.outputs)
        config = load_config(args.cfg or cim / "config.yaml", args.set)
        folder = cim / config.refine.model.network
    checkpoint = find_checkpoint(folder, args.step)
    config = load_config(args.cfg or folder / "config.yaml", args.set)
    refine = config.refine
    network = second_stage(refine.model.network)
    output = args.output or folder / "test" / dataset.name / "detections.json"
    coco = CocoImages(dataset.json, require_annotations=False)
    coco.check_files(dataset.images)

    state = load_checkpoint(checkpoint)
    if is_cim(state):
        raise CheckpointError(f"{checkpoint}: a CIM network; take tools/test_net.py for it")
    model = network.build(refine.model, refine.test, coco.num_classes, pretrained=False)
    load_model(model, state["model"], checkpoint, coco.num_classes)
    model.to(memory_format=memory_format(config.runtime))
    logger.info("network: %s after %s updates", checkpoint, state.get("step", "?"))
    logger.info("data: %s, %d images", coco.path, len(coco))
    detector = InstanceDetector(model, coco.category_ids, refine, ranks.device)
    ahead = images_ahead(args.device, args.threads, refine.input.num_workers)
    made_from = {
        "weights": fingerprint(state["model"]),
        "scale": refine.input.test_scale,
        "test": refine.test.model_dump(mode="json"),
        "category_ids": list(coco.category_ids),
        **masks_seen(state.get(MADE_FROM)),
    }
    images = dataset.fingerprints(image.file_name for image in coco.images)
    of_images = {image.image_id: images[image.file_name] for image in coco.images}
    done = detect_dataset(
        detector,
        InstanceDataset(coco, dataset.images, {}),
        output,
        made_from,
        of_images,
        ahead,
        ranks,
    )
    logger.info("%s: %s", "written" if done else "complete already, nothing to do", output)
    cli.say_next(f"tools/evaluate.py --detections {output} on the same data set")


if __name__ == "__main__":
    sys.exit(main())
