"""The peak response network (PRM): train it, and group proposals around its peaks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lib import command_line as cli
from lib.config import load_config
from lib.data.coco import CocoImages, ImageRecord
from lib.engine.checkpoint import seed_everything
from lib.engine.runs import describe_environment
from lib.files import atomic_file
from lib.prm.assign import (
    Rule,
    assign_clusters,
    foreground_rule,
    peaks_made_from,
    point_peaks,
    points_made_from,
    prm_peaks,
    samples_made_from,
)
from lib.prm.clusters import ClusterStore, agpl_clusters
from lib.prm.images import SquareImages
from lib.prm.network import build_prm, load_prm
from lib.prm.published import import_label_assign
from lib.prm.train import (
    average_precisions,
    is_finished,
    kept_features,
    prm_made_from,
    score_images,
    train_prm,
)
from lib.proposals.store import ProposalStore

logger = logging.getLogger("prm")

FEW = 1000
"""Below this many images starting processes takes longer than they save."""


def main(argv: Sequence[str] | None = None) -> int:
    commands = {
        "train": cli.Command(train, train_options),
        "clusters": cli.Command(clusters, clusters_options),
        "import": cli.Command(import_, import_options),
    }
    return cli.run_tool(__doc__, commands, argv)


def train_options(parser: cli.Parser) -> None:
    cli.add_config_arguments(parser)
    cli.add_dataset_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write it (default: --prm)"
    )
    cli.add_train_overwrite(parser)
    parser.add_argument(
        "--if-needed",
        action="store_true",
        help="do nothing where all clusters were imported and CIM does not start from the PRM",
    )
    cli.add_device_arguments(parser)


def train(args: cli.Namespace) -> int:
    """Train the peak response network of a data set on its image-level labels."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = load_config(args.cfg, args.set)
    dataset = cli.dataset_from_args(args)
    output = args.output or dataset.prm
    coco = CocoImages(dataset.json)
    coco.check_files(dataset.images)
    coco.warn_of_labels()
    labelled = labelled_images(coco)
    content = dataset.fingerprints(record.file_name for record in labelled)
    if args.if_needed and config.model.weights != "prm":
        store = ClusterStore(dataset.clusters)
        samples = samples_made_from(dataset, labelled, with_missing=True)
        if len(store.imported(samples, dataset.memory)) == len(labelled):
            print(f"{dataset.clusters}: the clusters of all images were imported, none is needed")
            return 0
    images = SquareImages(labelled, dataset.images, config.prm.image_size)
    made_from = prm_made_from(config.prm, config.run.seed, labelled, content)
    if is_finished(output, made_from, coco.num_classes, args.overwrite):
        print(f"{output}: finished before, nothing to do")
        return 0

    seed_everything(config.run.seed)
    net = build_prm(config.prm, coco.num_classes)
    setting = config.runtime.feature_cache_gb
    kept = kept_features(net, images, config.prm, setting, dataset.root, args.device)
    unfinished = output.with_suffix(".unfinished.pth")
    train_prm(
        net,
        images,
        config.prm,
        config.run.seed,
        unfinished,
        made_from,
        args.device,
        config.input.num_workers,
        args.overwrite,
        kept,
    )
    settings = config.prm.images_per_update, args.device, config.input.num_workers
    scores = score_images(net, images, *settings, kept)
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


def clusters_options(parser: cli.Parser) -> None:
    cli.add_config_arguments(parser)
    cli.add_dataset_arguments(parser)
    parser.add_argument(
        "--points",
        metavar="FOLDER",
        help="take annotated points (a .txt an image: `x y class confidence`) instead of peaks",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make all again, imported ones too"
    )
    cli.add_parallel_arguments(parser, None, "one per core if it pays")
    cli.add_device_arguments(parser, threads=False)


def clusters(args: cli.Namespace) -> int:
    """Group the proposals of every image around the peaks of its PRM (AGPL), or around points.

    Imported clusters are kept, unless points are given.
    """
    settings = load_config(args.cfg, args.set).prm
    dataset = cli.dataset_from_args(args)
    coco = CocoImages(dataset.json)
    store = ClusterStore(dataset.clusters)
    labelled = labelled_images(coco)
    samples = samples_made_from(dataset, labelled, with_missing=True)
    if args.points is None and not args.overwrite:
        imported = store.imported(samples, dataset.memory)
        if imported:
            print(f"{dataset.clusters}: the imported clusters of {len(imported)} images are kept")
        labelled = [record for record in labelled if record.file_name not in imported]
        if not labelled:
            return 0
    if args.points is None:
        source = peaks_made_from(dataset.prm, settings, [samples[r.file_name] for r in labelled])
        made_from = {r.file_name: {**samples[r.file_name], **source} for r in labelled}
    else:
        made_from = points_made_from(args.points, samples)
    records = labelled
    if not args.overwrite:
        names = {*store.out_of_date(made_from, dataset.memory, args.points is None)}
        records = [record for record in labelled if record.file_name in names]
    if len(records) < len(labelled):
        logger.info("%d of %d images are up to date", len(labelled) - len(records), len(labelled))
    rule: Rule = agpl_clusters
    proposals = ProposalStore(dataset.proposals)
    if args.points is not None:
        evidence = point_peaks(records, args.points, coco.num_classes)
    elif records:
        net = build_prm(settings, coco.num_classes, weights="random")
        load_prm(net, dataset.prm)
        net.to(args.device).eval()
        if settings.clusters == "agpl":
            evidence = prm_peaks(net, records, dataset.images)
        else:
            rule, evidence = foreground_rule(net, labelled, records, dataset.images, proposals)
    else:
        evidence = iter(())
    jobs = cli.jobs_from_args(args, len(records), FEW)
    outcomes, failures = assign_clusters(records, evidence, made_from, proposals, store, jobs, rule)

    if outcomes:
        made = list(outcomes.values())
        print(
            f"{len(made)} images: {np.mean([o.clusters for o in made]):.2f} clusters an image from "
            f"{np.mean([o.peaks for o in made]):.2f} peaks; "
            f"{np.mean([o.fallback for o in made]):.1%} of the images by a peak below the threshold"
        )
    if not failures:
        print(f"{dataset.clusters}: clusters of {len(labelled)} images")
    return cli.report_failures(failures, len(labelled))


def import_options(parser: cli.Parser) -> None:
    parser.add_argument("--source", type=Path, required=True, metavar="FILE", help="the pickle")
    cli.add_dataset_arguments(parser, needs_images=False)
    cli.add_parallel_arguments(parser)


def import_(args: cli.Namespace) -> int:
    """Import the published label_assign/*.pkl (cluster numbers of proposals) as clusters."""
    dataset = cli.dataset_from_args(args)
    coco = CocoImages(dataset.json)
    images = labelled_images(coco)
    unused, failures = import_label_assign(
        args.source,
        images,
        coco.num_classes,
        ProposalStore(dataset.proposals),
        ClusterStore(dataset.clusters),
        samples_made_from(dataset, images, with_missing=True),
        args.jobs,
    )
    print(f"{dataset.clusters}: clusters of {len(images) - len(failures)} images stored")
    if unused:
        print(
            f"{args.source} has {unused} more images, which {dataset.json} has not or not labelled"
        )
    return cli.report_failures(failures, len(images))


def labelled_images(coco: CocoImages) -> list[ImageRecord]:
    """The images that training sees; says how many others there are."""
    if coco.without_labels:
        logger.info("%s: %d images without labels are skipped", coco.path, coco.without_labels)
    return [record for record in coco.images if record.image_labels.any()]


if __name__ == "__main__":
    sys.exit(main())
