"""The share of annotated objects that stored proposals cover, over a whole data set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lib.evaluation.rle import rle_to_mask
from lib.parallel import for_each
from lib.proposals.recall import best_overlaps
from lib.proposals.store import ProposalStore


def measure_recall(
    store: ProposalStore,
    ground_truth: dict[str, Any],
    counts: Sequence[int],
    leave_out: Collection[str] = (),
    jobs: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Looks for the best proposal of every object but crowds.

    Args:
        ground_truth: as `lib.evaluation.coco_files.read_ground_truth` gives it.
        counts: how many proposals to look at; more than there are means all.
        leave_out: file names of images not to look at, for example those without proposals.

    Returns:
        ((len(counts), G) IoU with the best of the first proposals, (G,) areas as annotated), for
        `lib.proposals.recall.recall_table`.

    Raises:
        ValueError: the proposals of an image that is not left out cannot be read.
    """
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in ground_truth["annotations"]:
        if not annotation["iscrowd"]:
            objects.setdefault(annotation["image_id"], []).append(annotation)
    skipped = set(leave_out)
    images = [
        i for i in ground_truth["images"] if i["id"] in objects and i["file_name"] not in skipped
    ]
    tasks = ((i["file_name"], (store, i, objects[i["id"]], counts)) for i in images)
    results, failures = for_each(_measure_image, tasks, len(images), jobs, "recall")
    for reason in failures.values():
        raise ValueError(reason)
    if not results:
        return np.zeros((len(counts), 0)), np.zeros(0)
    best, areas = zip(*results.values(), strict=True)
    return np.concatenate(best, axis=1), np.concatenate(areas)


def _measure_image(
    store: ProposalStore,
    image: dict[str, Any],
    objects: list[dict[str, Any]],
    counts: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    regions = store.load(image["file_name"], (image["height"], image["width"])).regions
    masks = np.stack([rle_to_mask(o["segmentation"]) for o in objects])
    areas = np.array([o["area"] for o in objects], np.float64)
    return best_overlaps(regions, masks, counts), areas
