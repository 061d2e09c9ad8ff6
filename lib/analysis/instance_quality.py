"""Quality of mined instances and detections: their overlaps with the true objects.

For looking at a trained network on images kept for that; training does not use this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.proposals.overlaps import overlaps_with_masks
from lib.structures import Regions

GOOD_IOU = 0.5
"""From this mask IoU on, a proposal counts as right for an object."""
TIGHT_IOU = 0.75
"""From this mask IoU on, it counts as outlining the object well."""
Values = Mapping[str, np.ndarray]
"""Measure -> one value for each instance, object or proposal; any length, also 0."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Overlaps of the P proposals of an image with its G true objects."""

    class_idx: np.ndarray
    """(G,) int64, class of every object."""
    iou: np.ndarray
    """(P, G)"""
    coverage: np.ndarray
    """(P, G), fraction of the object that lies in the proposal."""
    purity: np.ndarray
    """(P, G), fraction of the proposal that lies in the object."""

    def best_of_class(self, class_idx: int) -> tuple[np.ndarray, np.ndarray]:
        """The object of a class that every proposal overlaps most.

        Returns:
            (P,) IoU and (P,) index of the object, 0 and -1 where no object is of the class.
        """
        iou = np.where(self.class_idx == class_idx, self.iou, -1.0)
        if not (self.class_idx == class_idx).any():
            return np.zeros(len(iou)), np.full(len(iou), -1)
        return iou.max(axis=1), iou.argmax(axis=1)


def compare(regions: Regions, masks: np.ndarray, class_idx: np.ndarray) -> Truth:
    """Compares all proposals of an image with all its objects.

    Args:
        masks: (G, H, W) bool, G may be 0.
        class_idx: (G,) int64.

    Raises:
        ValueError: the masks have another size than the image.
    """
    iou = overlaps_with_masks(regions, masks)
    area = (regions.membership @ regions.areas).astype(np.float64)[:, None]
    object_area = masks.sum(axis=(1, 2), dtype=np.float64)[None, :]
    shared = iou * (area + object_area) / (1 + iou)
    return Truth(
        class_idx=np.asarray(class_idx),
        iou=iou,
        coverage=shared / np.maximum(object_area, 1),
        purity=shared / np.maximum(area, 1),
    )


def instance_quality(truth: Truth, proposal_idx: np.ndarray, class_idx: np.ndarray) -> Values:
    """Measures proposals taken for whole objects.

    Each is compared with the object of its class that it overlaps most.

    Args:
        proposal_idx: (K,) int64.
        class_idx: (K,) int64, the class that each is taken for.

    Returns:
        `good` and `tight` (0 or 1: IoU of at least GOOD_IOU, TIGHT_IOU), `iou`, `coverage`,
        `purity`, each (K,); `found` (G,), 0 or 1 for every object: one of them is good for it.
    """
    iou, coverage, purity = np.zeros((3, len(proposal_idx)))
    found = np.zeros(len(truth.class_idx))
    for k, (proposal, c) in enumerate(zip(proposal_idx, class_idx, strict=True)):
        of_proposal, nearest = truth.best_of_class(c)
        if nearest[proposal] < 0:
            continue
        at = proposal, nearest[proposal]
        iou[k], coverage[k], purity[k] = of_proposal[proposal], truth.coverage[at], truth.purity[at]
        found[nearest[proposal]] = max(found[nearest[proposal]], iou[k] >= GOOD_IOU)
    return {
        "good": (iou >= GOOD_IOU).astype(float),
        "tight": (iou >= TIGHT_IOU).astype(float),
        "iou": iou,
        "coverage": coverage,
        "purity": purity,
        "found": found,
    }


def label_noise(truth: Truth, column: np.ndarray, cls_thresh: float) -> Values:
    """Wrong labels among those that proposals were given.

    Args:
        column: (P,) int64: -1 no label, 0 background, 1..C a class.
        cls_thresh: IoU from which a proposal is an object's.

    Returns:
        `noise`, 0 or 1 for every proposal labelled with a class: 1 where its IoU with every object
        of that class is below `cls_thresh`. `missed`, 0 or 1 for every proposal labelled
        background: 1 where it is an object's nevertheless.
    """
    noise = [truth.best_of_class(c - 1)[0][p] < cls_thresh for p, c in enumerate(column) if c > 0]
    best = truth.iou.max(axis=1, initial=0.0)
    return {
        "noise": np.array(noise, float),
        "missed": (best[column == 0] >= cls_thresh).astype(float),
    }


def best_per_object(
    truth: Truth, proposal_idx: np.ndarray, class_idx: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best detections of every class, as many as there are objects of it."""
    kept = [
        k
        for c in np.unique(truth.class_idx)
        for k in np.flatnonzero(class_idx == c)[: (truth.class_idx == c).sum()]
    ]
    return proposal_idx[kept], class_idx[kept]


def means(of_images: Sequence[Values]) -> dict[str, float | None]:
    """Mean of every measure over all images; None where nothing was measured."""
    names = dict.fromkeys(name for values in of_images for name in values)
    joined = {n: np.concatenate([v[n] for v in of_images if n in v]) for n in names}
    return {n: float(v.mean()) if len(v) else None for n, v in joined.items()}
