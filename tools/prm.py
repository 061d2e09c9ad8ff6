"""The peak response network (PRM): train it, and group proposals around its peaks."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.command_line import (
    Command,
    Namespace,
    Parser,
    add_config_arguments,
    add_dataset_arguments,
    add_device_arguments,
    add_parallel_arguments,
    dataset_from_args,
    report_failures,
    run_tool,
)
from lib.config import Config, PRMConfig, load_config
from lib.data.coco import CocoImages
from lib.engine.checkpoint import seed_everything
from lib.engine.runs import describe_environment
from lib.files import atomic_file
from lib.prm.assign import (
    Rule,
    assign_clusters,
    foreground_rule,
    made_from,
    point_peaks,
    prm_peaks,
)
from lib.prm.clusters import ClusterStore, agpl_clusters
from lib.prm.images import SquareImages
from lib.prm.network import PeakResponseNet, build_prm, load_prm
from lib.prm.published import import_label_assign, imported_clusters
from lib.prm.train import average_precisions, score_images, train_prm
from lib.proposals.store import ProposalStore
from lib.provenance import fingerprint

logger = logging.getLogger("prm")

FEW = 1000
"""Below this many images starting processes takes longer than they save."""


def main(argv: Sequence[str] | None = None) -> int:
    commands = {
        "train": Command(train, train_options),
        "clusters": Command(clusters, clusters_options),
        "import": Command(import_, import_options),
    }
    return run_tool(__doc__, commands, argv)


def train_options(parser: Parser) -> None:
    add_config_arguments(parser)
    add_dataset_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write it (default: --prm)"
    )
    parser.add_argument("--overwrite", action="store_true", help="train again what is finished")
    parser.add_argument(
        "--if-needed",
        action="store_true",
        help="do nothing where all clusters were imported and CIM does not start from the PRM",
    )
    add_device_arguments(parser)


def train(args: Namespace) -> int:
    """Train the peak response network of a data set on its image-level labels."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = load_config(args.cfg, args.set)
    dataset = dataset_from_args(args)
    output = args.output or dataset.prm
    coco = CocoImages(dataset.json)
    coco.check_files(dataset.images)
    coco.warn_of_labels()
    labelled = [record for record in coco.images if record.image_labels.any()]
    if coco.without_labels:
        logger.info("%s: %d images without labels are skipped", coco.path, coco.without_labels)
    if args.if_needed and config.model.weights != "prm":
        proposals, store = ProposalStore(dataset.proposals), ClusterStore(dataset.clusters)
        if len(imported_clusters(labelled, proposals, store)) == len(labelled):
            print(f"{dataset.clusters}: the clusters of all images were imported, none is needed")
            return 0
    images = SquareImages(labelled, dataset.images, config.prm.image_size)
    source = prm_source(config, images)
    if output.is_file() and not args.overwrite:
        check_finished(output, source, coco.num_classes)
        print(f"{output}: finished before, nothing to do (--overwrite trains it again)")
        return 0

    seed_everything(config.run.seed)
    net = build_prm(config.prm, coco.num_classes)
    unfinished = output.with_suffix(".unfinished.pth")
    if args.overwrite:
        unfinished.unlink(missing_ok=True)
    workers = config.input.num_workers
    train_prm(net, images, config.prm, config.run.seed, unfinished, source, args.device, workers)
    scores = score_images(net, images, config.prm.images_per_update, args.device, workers)
    precisions = average_precisions(scores, images.image_labels.numpy())
    mean = float(np.nanmean(precisions))
    with atomic_file(output) as file:
        content = {
            "model": {name: tensor.cpu() for name, tensor in net.state_dict().items()},
            "class_names": coco.class_names,
            "made_from": source,
            "config": config.model_dump(mode="json"),
            "environment": describe_environment(),
            "train_class_map": mean,
        }
        torch.save(content, file)
    unfinished.unlink(missing_ok=True)
    print(f"class mAP on the training labels (not held out): {mean:.3f}")
    print(f"{output}: written")
    return 0


def prm_source(config: Config, images: SquareImages) -> dict[str, Any]:
    """Everything the trained network depends on, as plain values."""
    settings = config.prm.model_dump(
        mode="json", exclude={"peak_thresh", "peak_thresh_relative", "clusters"}
    )
    return {
        **{f"prm.{name}": value for name, value in settings.items()},
        "run.seed": config.run.seed,
        "images": len(images),
        "images and labels": images.digest(),
    }


def check_finished(path: Path, source: dict[str, Any], num_classes: int) -> None:
    """Raises ValueError where the file is no PRM, or the result of other settings or data."""
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
    before = content.get("made_from", source)
    changed = [name for name in source if before.get(name) != source[name]]
    if changed:
        told = ", ".join(f"{n} was {before.get(n)}, is {source[n]}" for n in changed)
        raise ValueError(f"{path}: trained otherwise: {told}; give --overwrite or another --output")


def clusters_options(parser: Parser) -> None:
    add_config_arguments(parser)
    add_dataset_arguments(parser)
    parser.add_argument(
        "--points",
        metavar="FOLDER",
        help="take annotated points (a .txt an image: `x y class confidence`) instead of peaks",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make all again, imported ones too"
    )
    add_parallel_arguments(parser, None, "one per core if it pays")
    add_device_arguments(parser, threads=False)


def clusters(args: Namespace) -> int:
    """Group the proposals of every image around the peaks of its PRM (AGPL), or around points.

    Imported clusters are kept, unless points are given.
    """
    settings = load_config(args.cfg, args.set).prm
    dataset = dataset_from_args(args)
    coco = CocoImages(dataset.json)
    proposals, store = ProposalStore(dataset.proposals), ClusterStore(dataset.clusters)
    labelled = [record for record in coco.images if record.image_labels.any()]
    if coco.without_labels:
        logger.info("%s: %d images without labels are skipped", coco.path, coco.without_labels)
    if args.points is None and not args.overwrite:
        imported = imported_clusters(labelled, proposals, store)
        if imported:
            print(f"{dataset.clusters}: the imported clusters of {len(imported)} images are kept")
        labelled = [r for r in labelled if r.file_name not in imported]
        if not labelled:
            return 0
    if args.points is None:
        net = build_prm(settings, coco.num_classes, weights="random")
        load_prm(net, dataset.prm)
        net.to(args.device).eval()
        source = peaks_source(net, settings)
        if settings.clusters == "foreground":  # learned from all images
            source = fingerprint(source, [made_from("", r, proposals) for r in labelled])
    else:
        source = "points"

    sources = {r.file_name: made_from(source, r, proposals, args.points) for r in labelled}
    records = labelled
    if not args.overwrite:
        records = [r for r in labelled if store.made_from(r.file_name) != sources[r.file_name]]
    if len(records) < len(labelled):
        logger.info("%d of %d images are up to date", len(labelled) - len(records), len(labelled))
    rule: Rule = agpl_clusters
    if args.points is not None:
        evidence = point_peaks(records, args.points, coco.num_classes)
    elif settings.clusters == "agpl" or not records:
        evidence = prm_peaks(net, records, dataset.images)
    else:
        rule, evidence = foreground_rule(net, labelled, records, dataset.images, proposals)
    jobs = args.jobs if args.jobs is not None else (1 if len(records) < FEW else -1)
    wanted = [sources[record.file_name] for record in records]
    outcomes, failures = assign_clusters(records, evidence, wanted, proposals, store, jobs, rule)

    if outcomes:
        made = list(outcomes.values())
        print(
            f"{len(made)} images: {np.mean([o.clusters for o in made]):.2f} clusters an image from "
            f"{np.mean([o.peaks for o in made]):.2f} peaks; "
            f"{np.mean([o.fallback for o in made]):.1%} of the images by a peak below the threshold"
        )
    if not failures:
        print(f"{dataset.clusters}: clusters of {len(labelled)} images")
    return report_failures(failures, len(labelled))


def peaks_source(net: PeakResponseNet, settings: PRMConfig) -> str:
    """Everything the peaks of an image depend on: the weights, and how peaks are taken."""
    content = hashlib.blake2b(digest_size=16)
    for tensor in net.state_dict().values():
        content.update(tensor.cpu().numpy().tobytes())
    taken = ("image_size", "upsample", "smooth", "peak_thresh", "peak_thresh_relative")
    return f"{content.hexdigest()} {[getattr(settings, name) for name in taken]}"


def import_options(parser: Parser) -> None:
    parser.add_argument("--source", type=Path, required=True, metavar="FILE", help="the pickle")
    add_dataset_arguments(parser, needs_images=False)
    add_parallel_arguments(parser)


def import_(args: Namespace) -> int:
    """Import the published label_assign/*.pkl (cluster numbers of proposals) as clusters."""
    dataset = dataset_from_args(args)
    coco = CocoImages(dataset.json)
    images = [i for i in coco.images if i.image_labels.any()]  # training skips the others
    unused, failures = import_label_assign(
        args.source,
        images,
        coco.num_classes,
        ProposalStore(dataset.proposals),
        ClusterStore(dataset.clusters),
        args.jobs,
    )
    print(f"{dataset.clusters}: clusters of {len(images) - len(failures)} images stored")
    if unused:
        print(
            f"{args.source} has {unused} more images, which {dataset.json} has not or not labelled"
        )
    return report_failures(failures, len(images))


if __name__ == "__main__":
    sys.exit(main())
