"""Reports what the stored proposals of a data set are, and what is wrong with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from lib.command_line import errors_in_a_line
from lib.data.catalog import Dataset, add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.evaluation.coco_files import read_ground_truth
from lib.evaluation.proposal_recall import find_objects
from lib.parallel import add_parallel_arguments, workers_from_args
from lib.proposals.check import StoreCheck, check_store, compare_with_published
from lib.proposals.recall import recall_table
from lib.proposals.store import ProposalStore

ALL = 2**31
"""More proposals than any image has."""
SHOWN = 20
"""Of each kind of fault, so many images are named."""


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_dataset_arguments(parser)
    parser.add_argument(
        "--published",
        metavar="FILE",
        help="a published cob/*.pkl: are these its proposals, in its order?",
    )
    add_parallel_arguments(parser)
    args = parser.parse_args(argv)
    with workers_from_args(args):
        return run(args)


def run(args: argparse.Namespace) -> int:
    dataset = dataset_from_args(args)
    images = CocoImages(dataset.json, require_annotations=False).images
    store = ProposalStore(dataset.proposals)
    check = check_store(store, images, args.jobs)
    print_check(check, store, len(images))
    unusable = {*check.missing, *check.wrong_size, *check.faults}
    print_recall(dataset, store, unusable, args.jobs)
    usable = check.usable
    if args.published is not None:
        agreeing, different = compare_with_published(store, images, args.published, args.jobs)
        print(f"{args.published}: {agreeing} of {len(images)} images agree")
        usable &= print_images(different, "differ")
    return 0 if usable else 1


def print_check(check: StoreCheck, store: ProposalStore, num_images: int) -> None:
    print(f"{store.folder}: {len(check.counts)} of {num_images} images have readable proposals")
    if check.counts:
        print(
            f"proposals an image: {min(check.counts)} at least, {np.median(check.counts):g} "
            f"median, {max(check.counts)} at most, {sum(check.counts)} in all"
        )
    each = check.num_bytes / max(len(check.counts), 1)
    print(f"disk: {check.num_bytes / 1e6:.1f} MB, {each / 1e3:.1f} KB an image")
    print_images(dict.fromkeys(check.missing, "no proposals"), "without proposals")
    print_images(check.wrong_size, "of another size than their image")
    print_images(check.faults, "with a damaged file, zero proposals or empty masks")
    print_images(
        {name: f"{n} masks equal an earlier one" for name, n in check.duplicates.items()},
        "with duplicate masks (no harm)",
    )


def print_recall(dataset: Dataset, store: ProposalStore, unusable: set[str], jobs: int) -> None:
    """The best that these proposals allow, where the json has masks to tell by."""
    truth = read_ground_truth(dataset.json, need_masks=False)
    if not truth["annotations"]:
        print(f"recall: {dataset.json} has no masks")
        return
    found = find_objects(store, truth, [ALL], unusable, jobs)
    if found.failures:
        print_images(found.failures, "left out of the recall")
    rows = recall_table(found.best, found.areas, [ALL], [0.5, 0.75])
    for row in rows:
        if row["recall"]:
            recall = ", ".join(f"{value:.3f} at IoU {t}" for t, value in row["recall"].items())
            print(f"recall of {row['objects']} objects ({row['size']}): {recall}")


def print_images(reasons: dict[str, str], what: str) -> bool:
    """Names the first of them; returns whether there are none."""
    print(f"images {what}: {len(reasons)}")
    for name, reason in list(reasons.items())[:SHOWN]:
        print(f"  {name}: {reason}")
    if len(reasons) > SHOWN:
        print(f"  ... and {len(reasons) - SHOWN} more")
    return not reasons


if __name__ == "__main__":
    sys.exit(main())
