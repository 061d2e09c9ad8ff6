"""Groups the proposals of every image around the peaks of its PRM (AGPL), or around points.

Clusters that tools/import_clusters.py stored are kept, unless points are given.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Sequence

import numpy as np
import torch

from lib.command_line import errors_in_a_line
from lib.config import PRMConfig, load_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.engine.runs import start_logging
from lib.parallel import add_parallel_arguments, failures_text, workers_from_args
from lib.prm.assign import (
    Rule,
    assign_clusters,
    foreground_rule,
    made_from,
    point_peaks,
    prm_peaks,
)
from lib.prm.clusters import ClusterStore, agpl_clusters
from lib.prm.network import PeakResponseNet, build_prm, load_prm
from lib.prm.published import imported_clusters
from lib.proposals.store import ProposalStore
from lib.provenance import fingerprint

logger = logging.getLogger("assign_clusters")

FEW = 1000
"""Below this many images starting processes takes longer than they save."""


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", metavar="FILE", help="configuration (default: the published one)")
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    args = parser.parse_args(argv)
    start_logging()
    with workers_from_args(args):
        return run(args)


def run(args: argparse.Namespace) -> int:
    settings = load_config(args.cfg, args.set).prm
    dataset = dataset_from_args(args)
    coco = CocoImages(dataset.json)
    proposals, clusters = ProposalStore(dataset.proposals), ClusterStore(dataset.clusters)
    labelled = [record for record in coco.images if record.image_labels.any()]
    if coco.without_labels:
        logger.info("%s: %d images without labels are skipped", coco.path, coco.without_labels)
    if args.points is None and not args.overwrite:
        imported = imported_clusters(labelled, proposals, clusters)
        if imported:
            print(f"{dataset.clusters}: the imported clusters of {len(imported)} images are kept")
        labelled = [r for r in labelled if r.file_name not in imported]
        if not labelled:
            return 0
    if args.points is None:
        net = build_prm(settings, coco.num_classes, weights="random")
        load_prm(net, dataset.prm)
        net.to(args.device).eval()
        source = describe(net, settings)
        if settings.clusters == "foreground":  # learned from all images
            source = fingerprint(source, [made_from("", r, proposals) for r in labelled])
    else:
        source = "points"

    sources = {r.file_name: made_from(source, r, proposals, args.points) for r in labelled}
    records = labelled
    if not args.overwrite:
        records = [r for r in labelled if clusters.made_from(r.file_name) != sources[r.file_name]]
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
    outcomes, failures = assign_clusters(records, evidence, wanted, proposals, clusters, jobs, rule)

    if outcomes:
        made = list(outcomes.values())
        print(
            f"{len(made)} images: {np.mean([o.clusters for o in made]):.2f} clusters an image from "
            f"{np.mean([o.peaks for o in made]):.2f} peaks; "
            f"{np.mean([o.fallback for o in made]):.1%} of the images by a peak below the threshold"
        )
    if failures:
        print(failures_text(failures, len(labelled)), file=sys.stderr)
        return 1
    print(f"{dataset.clusters}: clusters of {len(labelled)} images")
    return 0


def describe(net: PeakResponseNet, settings: PRMConfig) -> str:
    """What the peaks of an image depend on: the weights, and how peaks are taken."""
    content = hashlib.blake2b(digest_size=16)
    for tensor in net.state_dict().values():
        content.update(tensor.cpu().numpy().tobytes())
    taken = ("image_size", "upsample", "smooth", "peak_thresh", "peak_thresh_relative")
    return f"{content.hexdigest()} {[getattr(settings, name) for name in taken]}"


if __name__ == "__main__":
    sys.exit(main())
