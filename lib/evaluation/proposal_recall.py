"""Recall of stored proposals over a data set: the best proposal of every annotated object."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.parallel import for_each
from lib.proposals.recall import best_overlaps
from lib.proposals.rle import rle_to_mask
from lib.proposals.store import ProposalStore


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """Objects of a data set, without crowds, and their best proposals."""

    best: np.ndarray
    """(len(counts), G) IoU of every object with the best of the first proposals."""
    areas: np.ndarray
    """(G,) as annotated."""
    num_proposals: list[int]
    """Of every image that has objects."""
    failures: dict[str, str]
    """Why the proposals of an image cannot be used, by its file name."""


def find_objects(
    store: ProposalStore,
    ground_truth: dict[str, Any],
    counts: Sequence[int],
    leave_out: Collection[str] = (),
    jobs: int = -1,
) -> FoundObjects:
    """Finds the best proposal of every object, for `lib.proposals.recall.recall_table`.

    Args:
        ground_truth: from `lib.evaluation.coco_files.read_ground_truth`.
        counts: how many proposals to look at; more than there are means all.
        leave_out: file names of images to skip, for example those without proposals.
    """
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in ground_truth["annotations"]:
        if not annotation["iscrowd"]:
            objects.setdefault(annotation["image_id"], []).append(annotation)
    skipped = set(leave_out)
    tasks = [
        (i["file_name"], (store, i, objects[i["id"]], counts))
        for i in ground_truth["images"]
        if i["id"] in objects and i["file_name"] not in skipped
    ]
    found, failures = for_each(_find_in_image, tasks, len(tasks), jobs, "recall")
    return FoundObjects(
        best=np.hstack([np.zeros((len(counts), 0)), *(best for best, _, _ in found.values())]),
        areas=np.hstack([np.zeros(0), *(areas for _, areas, _ in found.values())]),
        num_proposals=[number for _, _, number in found.values()],
        failures=failures,
    )


def _find_in_image(
    store: ProposalStore,
    image: dict[str, Any],
    objects: list[dict[str, Any]],
    counts: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, int]:
    proposals = store.load(image["file_name"], (image["height"], image["width"]))
    masks = np.stack([rle_to_mask(o["segmentation"]) for o in objects])
    areas = np.array([o["area"] for o in objects], np.float64)
    return best_overlaps(proposals.regions, masks, counts), areas, len(proposals)
