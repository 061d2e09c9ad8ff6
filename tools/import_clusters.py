"""Imports the published label_assign/*.pkl (cluster numbers of proposals) as clusters."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lib.command_line import errors_in_a_line
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.parallel import add_parallel_arguments, failures_text, workers_from_args
from lib.prm.clusters import ClusterStore
from lib.prm.published import import_label_assign
from lib.proposals.store import ProposalStore


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, metavar="FILE", help="the pickle")
    add_dataset_arguments(parser)
    add_parallel_arguments(parser)
    args = parser.parse_args(argv)
    with workers_from_args(args):
        return run(args)


def run(args: argparse.Namespace) -> int:
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
    if failures:
        print(failures_text(failures, len(images)), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
