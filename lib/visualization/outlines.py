"""Masks as outlines: what a page needs to draw them sharply at any zoom."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from lib.proposals import rle

SCALE = 4
"""Coordinates of outlines count in quarters of a pixel."""


def tolerance_for(size: tuple[int, int]) -> float:
    """Corners smaller than this do not show in an image of this (height, width)."""
    return float(np.clip(max(size) / 640, 0.5, 1.0))


def mask_outlines(mask: np.ndarray, tolerance: float = 0.5) -> list[list[int]]:
    """The closed lines around a mask, holes included; filled by the even-odd rule they are it.

    Args:
        mask: (H, W) bool.
        tolerance: pixels by which a line may leave out corners.

    Returns:
        One list a line, [x, y, dx, dy, dx, dy, ...]: the first point, then the way to each
        further one, in quarters of a pixel from the upper left corner of the image. [] for an
        empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    inside = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    # Lines of OpenCV run through the middle of pixels; enlarged, they run along their edge.
    factor = SCALE if inside.size < 100_000 else SCALE // 2
    large = np.pad(inside.astype(np.uint8), 1).repeat(factor, axis=0).repeat(factor, axis=1)
    lines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for line in lines:
        points = cv2.approxPolyDP(line, tolerance * factor, closed=True)[:, 0]
        if len(points) < 3:
            points = line[:, 0]
        points = points * (SCALE // factor) + np.array([left - 1, top - 1]) * SCALE
        outlines.append(np.diff(points, axis=0, prepend=0).ravel().tolist())
    return outlines


def rle_outlines(segmentation: dict[str, Any], tolerance: float = 0.5) -> list[list[int]]:
    """`mask_outlines` of a compressed RLE."""
    return mask_outlines(rle.rle_to_mask(segmentation), tolerance)
