"""Imports proposals made elsewhere (COB, Segment Anything, PNG, npz, pickles) into the store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lib.command_line import errors_in_a_line
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages
from lib.parallel import add_parallel_arguments, failures_text, workers_from_args
from lib.proposals.importing import import_all
from lib.proposals.readers import READERS
from lib.proposals.store import ProposalStore


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", required=True, choices=sorted(READERS))
    parser.add_argument(
        "--source", required=True, metavar="PATH", help="the folder (pickle: the file) to import"
    )
    add_dataset_arguments(parser)
    parser.add_argument(
        "--drop-empty", action="store_true", help="leave empty masks out (otherwise an error)"
    )
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="leave masks equal to an earlier one out"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="also images that have proposals already"
    )
    add_parallel_arguments(parser)
    args = parser.parse_args(argv)
    with workers_from_args(args):
        return run(args)


def run(args: argparse.Namespace) -> int:
    dataset = dataset_from_args(args)
    images = CocoImages(dataset.json, require_annotations=False).images
    store = ProposalStore(dataset.proposals)
    todo = [i for i in images if args.overwrite or not store.has(i.file_name)]
    if len(todo) < len(images):
        print(f"{len(images) - len(todo)} of {len(images)} images have proposals already")
    if not todo:
        return 0
    reader = READERS[args.format](args.source)
    total, failures = import_all(
        reader, store, todo, args.drop_empty, args.drop_duplicates, args.jobs
    )
    print(
        f"{store.folder}: {total.stored} proposals of {len(todo) - len(failures)} images stored; "
        f"left out: {total.empty} empty masks, {total.duplicates} duplicates"
    )
    if failures:
        print(failures_text(failures, len(todo)), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
