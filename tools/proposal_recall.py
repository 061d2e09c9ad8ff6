"""Prints which part of a data set's objects has a good proposal, by size and number of proposals.

The masks of the annotations (crowds left out) are used for this report and for nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.command_line import errors_in_a_line
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.evaluation.coco_files import read_ground_truth
from lib.evaluation.rle import rle_to_mask
from lib.files import write_json
from lib.parallel import failures_text, for_each
from lib.proposals.recall import best_overlaps, recall_table, table_text
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
    parser.add_argument(
        "--jobs", "--workers", type=int, default=-1, help="processes (default: one per core)"
    )
    args = parser.parse_args(argv)
    return run(args)


def run(args: argparse.Namespace) -> int:
    if min(args.counts) < 1:
        raise ValueError(f"--counts has {min(args.counts)}, expected at least 1")
    dataset = dataset_from_args(args)
    store = ProposalStore(dataset.proposals)
    content = read_ground_truth(dataset.json)
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            objects.setdefault(annotation["image_id"], []).append(annotation)
    images = [i for i in content["images"] if i["id"] in objects]
    if not images:
        raise ValueError(f"{dataset.json}: no annotations but crowds; there is nothing to find")
    tasks = ((i["file_name"], (store, i, objects[i["id"]], args.counts)) for i in images)
    results, failures = for_each(measure_one, tasks, len(images), args.jobs, "recall")
    if results:
        report(args, list(results.values()), len(images))
    if failures:
        print(failures_text(failures, len(images)), file=sys.stderr)
        return 1
    return 0


def measure_one(
    store: ProposalStore, image: dict[str, Any], objects: list[dict[str, Any]], counts: list[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Best IoU (counts, G) and areas (G,) of an image's objects, and how many proposals it has."""
    proposals = store.load(image["file_name"], (image["height"], image["width"]))
    masks = np.stack([rle_to_mask(o["segmentation"]) for o in objects])
    areas = np.array([o["area"] for o in objects], np.float64)
    return best_overlaps(proposals.regions, masks, counts), areas, len(proposals)


def report(
    args: argparse.Namespace, results: list[tuple[np.ndarray, np.ndarray, int]], num_images: int
) -> None:
    best, areas, numbers = zip(*results, strict=True)
    best, areas = np.concatenate(best, axis=1), np.concatenate(areas)
    rows = recall_table(best, areas, args.counts, args.thresholds)
    print(f"{len(results)} of {num_images} images, {np.mean(numbers):.0f} proposals an image")
    print(table_text(rows))
    if args.output:
        content = {"images": len(results), "mean_proposals": float(np.mean(numbers)), "rows": rows}
        write_json(args.output, content, indent=2)


if __name__ == "__main__":
    sys.exit(main())
