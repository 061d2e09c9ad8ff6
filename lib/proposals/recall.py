"""How many objects have a good proposal at all, which bounds whatever is built on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.proposals.overlaps import overlaps_with_masks
from lib.structures import Regions

SIZES = {
    "all": (0, np.inf),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, np.inf),
    "over 32x32": (32**2, np.inf),
}
"""Groups of objects by area in pixels, from the first number up to below the second (COCO's)."""


def best_overlaps(regions: Regions, masks: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """IoU of every object with the best of the first proposals.

    Args:
        regions: the proposals of an image, best first.
        masks: (G, H, W) bool, its objects; G may be 0.
        counts: how many proposals to look at; more than there are means all.

    Returns:
        (len(counts), G) float64.
    """
    iou = overlaps_with_masks(regions, masks)
    best = np.zeros((len(counts), len(masks)))
    for row, count in zip(best, counts, strict=True):
        if len(iou[:count]):
            row[:] = iou[:count].max(axis=0)
    return best


def recall_table(
    best: np.ndarray, areas: np.ndarray, counts: Sequence[int], thresholds: Sequence[float]
) -> list[dict]:
    """Recall and mean best IoU by number of proposals and size of object.

    Args:
        best: (len(counts), G) as from `best_overlaps`, the objects of all images side by side.
        areas: (G,) of the objects.
        thresholds: an object is found when its best IoU is at least this.

    Returns:
        for every count and every size of SIZES: `proposals`, `size`, `objects` (how many there
        are), `recall` by threshold as text, `mean_iou`; both are None where there is no object.
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
        found = [f"{row['recall'][t]:.3f}" if row["recall"] else "-" for t in thresholds]
        mean = f"{row['mean_iou']:.3f}" if row["recall"] else "-"
        cells = [str(row["proposals"]), row["size"], str(row["objects"]), *found, mean]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
