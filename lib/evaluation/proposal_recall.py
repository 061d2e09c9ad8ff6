"""Recall of stored proposals over a data set, which bounds whatever is built on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.parallel import for_each
from lib.proposals.overlaps import overlaps_with_masks
from lib.proposals.rle import masks_of
from lib.proposals.store import ProposalStore
from lib.structures import Regions

SIZES = {
    "all": (0, np.inf),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, np.inf),
    "over 32x32": (32**2, np.inf),
}
"""Groups of objects by area in pixels, from the first number up to below the second (COCO's)."""


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """The G objects of a data set, without crowds, and their best proposals."""

    best: np.ndarray
    """(len(counts), G) IoU of every object with the best of the first proposals."""
    areas: np.ndarray
    """(G,) as annotated."""
    num_proposals: list[int]
    """Of every image that has objects."""
    failures: dict[str, str]
    """Reasons why proposals of images cannot be used, by file name."""


def find_objects(
    store: ProposalStore,
    ground_truth: dict[str, Any],
    counts: Sequence[int],
    leave_out: Collection[str] = (),
    jobs: int = -1,
) -> FoundObjects:
    """Finds the best proposal of every object.

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
    masks = masks_of(objects, proposals.regions.size)
    areas = np.array([o["area"] for o in objects], np.float64)
    return best_overlaps(proposals.regions, masks, counts), areas, len(proposals)


def best_overlaps(regions: Regions, masks: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """IoU of every object of an image with the best of the first proposals.

    Args:
        regions: the proposals, best first.
        masks: (G, H, W) bool, the objects; G may be 0.
        counts: as for `find_objects`.

    Returns:
        (len(counts), G) float64.
    """
    iou = overlaps_with_masks(regions, masks)
    return np.array([iou[:n].max(axis=0, initial=0) for n in counts], np.float64)


def recall_table(
    best: np.ndarray, areas: np.ndarray, counts: Sequence[int], thresholds: Sequence[float]
) -> list[dict]:
    """Recall and mean best IoU by number of proposals and size of object.

    Args:
        best, areas, counts: see `find_objects`.
        thresholds: an object is found when its best IoU is at least this.

    Returns:
        For every count and every size of SIZES `proposals`, `size`, `objects` (their number),
        `recall` by threshold as text, `mean_iou`; the last two are None without objects.
    """
    rows = []
    for count, overlaps in zip(counts, best, strict=True):
        for size, (low, high) in SIZES.items():
            chosen = overlaps[(areas >= low) & (areas < high)]
            found = {f"{t:g}": float((chosen >= t).mean()) for t in thresholds if len(chosen)}
            rows.append(
                {
                    "proposals": int(count),
                    "size": size,
                    "objects": len(chosen),
                    "recall": found or None,
                    "mean_iou": float(chosen.mean()) if len(chosen) else None,
                }
            )
    return rows


def table_text(rows: Sequence[dict]) -> str:
    """The rows of `recall_table` as a Markdown table."""
    thresholds = next((list(row["recall"]) for row in rows if row["recall"]), [])
    titles = ["proposals", "objects", "number", *(f"IoU >= {t}" for t in thresholds), "mean IoU"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        values = [*row["recall"].values(), row["mean_iou"]] if row["recall"] else []
        numbers = [f"{v:.3f}" for v in values] or ["-"] * (len(thresholds) + 1)
        cells = [str(row["proposals"]), row["size"], str(row["objects"]), *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
