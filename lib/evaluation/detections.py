"""From proposal scores to detections (threshold, box NMS per class, the best of the image) and
to COCO's result format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.proposals import rle
from lib.structures import Detections, Regions


def select_detections(
    scores: np.ndarray,
    boxes: np.ndarray,
    score_thresh: float,
    nms_thresh: float,
    max_detections: int | None,
    keep_classes: np.ndarray | None = None,
) -> Detections:
    """Greedy box NMS within every class, then the best detections over all classes
    (docs/specification.md#inference).

    Visits all (proposal, class) pairs from the highest score down and keeps a pair unless a kept
    one of its class overlaps its box by IoU >= `nms_thresh`, until `max_detections` are kept.
    Equal scores are visited in order of proposal, then of class (the published order of ties is
    that of numpy's unstable sort, and it keeps more than the limit when scores tie there).

    Args:
        scores: (P, C) in any float type, without background. P may be 0.
        boxes: (P, 4) xyxy in pixels of the unscaled image.
        score_thresh: pairs need a score above this.
        nms_thresh: box IoU from which the lower score is suppressed.
        max_detections: of the whole image; None keeps all.
        keep_classes: (C,) bool or {0, 1}; only these classes are detected. None detects all.

    Returns:
        Detections, best first.

    Raises:
        ValueError: shapes that do not match, or scores that are not finite.
    """
    num_proposals, num_classes = scores.shape
    if boxes.shape != (num_proposals, 4):
        raise ValueError(
            f"boxes of shape {boxes.shape} for {num_proposals} scored proposals, "
            f"expected {(num_proposals, 4)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity; the network that gave them has diverged")
    candidate = scores > score_thresh
    if keep_classes is not None:
        if np.shape(keep_classes) != (num_classes,):
            raise ValueError(
                f"keep_classes of shape {np.shape(keep_classes)}, expected {(num_classes,)}"
            )
        candidate &= np.asarray(keep_classes, dtype=bool)
    proposal_idx, class_idx = np.nonzero(candidate)
    order = np.argsort(-scores[candidate], kind="stable")
    proposal_idx, class_idx = proposal_idx[order], class_idx[order]

    clear = ~(box_overlaps(boxes) >= nms_thresh)
    free = np.ones((num_classes, num_proposals), dtype=bool)
    limit = len(order) if max_detections is None else max_detections
    kept: list[int] = []
    for k, (p, c) in enumerate(zip(proposal_idx.tolist(), class_idx.tolist(), strict=True)):
        if len(kept) >= limit:
            break
        if free[c, p]:
            kept.append(k)
            free[c] &= clear[p]

    proposal_idx, class_idx = proposal_idx[kept], class_idx[kept]
    return Detections(
        proposal_idx=proposal_idx,
        class_idx=class_idx,
        scores=scores[proposal_idx, class_idx].astype(np.float32),
    )


def box_overlaps(boxes: np.ndarray) -> np.ndarray:
    """(P, P) float32 IoU of (P, 4) xyxy boxes, where a box from x1 to x2 is x2 - x1 + 1 wide."""
    # PARITY: inclusive widths although xmax already is one past the mask (published NMS), and
    # computed in float32 like there, so that overlaps next to the threshold fall the same way.
    x1, y1, x2, y2 = np.asarray(boxes, dtype=np.float32).T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    width = np.maximum(0, np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1) + 1)
    height = np.maximum(0, np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1) + 1)
    inter = width * height
    return inter / (np.add.outer(areas, areas) - inter)


def to_coco_results(
    detections: Detections, regions: Regions, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of one image in COCO's result format, best first, as plain JSON values.

    Args:
        regions: the proposals that the detections point at.
        category_ids: COCO category id of every class index.

    Returns:
        For every detection image_id, category_id, score, bbox (tight around the mask, x y width
        height), segmentation (compressed RLE, counts as text).
    """
    # A proposal that is detected as several classes is encoded once.
    distinct, where = np.unique(detections.proposal_idx, return_inverse=True)
    encoded = rle.regions_to_rle(regions, distinct)
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[class_idx]),
            "score": float(score),
            "bbox": rle.tight_box(encoded[i]),
            "segmentation": dict(encoded[i]),
        }
        for i, class_idx, score in zip(
            where, detections.class_idx.tolist(), detections.scores.tolist(), strict=True
        )
    ]
