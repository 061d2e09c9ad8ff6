"""Prints which part of a data set's objects has a good proposal, by size and number of proposals.

The masks of the annotations (crowds left out) are used for this report and for nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from lib.command_line import errors_in_a_line
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.evaluation.coco_files import read_ground_truth
from lib.evaluation.proposal_recall import find_objects
from lib.files import write_json
from lib.parallel import add_parallel_arguments, failures_text, workers_from_args
from lib.proposals.recall import recall_table, table_text
from lib.proposals.store import ProposalStore


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_dataset_arguments(parser)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[100, 500, 1000], help="numbers of proposals"
    )
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.7], help="IoU")
    parser.add_argument("--output", metavar="FILE", help="also write the numbers as JSON")
    add_parallel_arguments(parser)
    args = parser.parse_args(argv)
    with workers_from_args(args):
        return run(args)


def run(args: argparse.Namespace) -> int:
    if min(args.counts) < 1:
        raise ValueError(f"--counts has {min(args.counts)}, expected at least 1")
    dataset = dataset_from_args(args)
    store = ProposalStore(dataset.proposals)
    found = find_objects(store, read_ground_truth(dataset.json), args.counts, jobs=args.jobs)
    num_used, num_failed = len(found.num_proposals), len(found.failures)
    if num_used + num_failed == 0:
        raise ValueError(f"{dataset.json}: no annotations but crowds; there is nothing to find")
    if num_used:
        mean = float(np.mean(found.num_proposals))
        rows = recall_table(found.best, found.areas, args.counts, args.thresholds)
        print(f"{num_used} of {num_used + num_failed} images, {mean:.0f} proposals an image")
        print(table_text(rows))
        if args.output:
            content = {"images": num_used, "mean_proposals": mean, "rows": rows}
            write_json(args.output, content, indent=2)
    if num_failed:
        print(failures_text(found.failures, num_used + num_failed), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
