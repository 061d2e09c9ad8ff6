"""Masks as outlines, which a page can draw sharply at any zoom."""

from __future__ import annotations

import cv2
import numpy as np

SCALE = 4
"""Coordinates of outlines count in quarters of a pixel."""


def tolerance_for(size: tuple[int, int]) -> float:
    """Size in pixels of corners too small to be seen in an image of this (height, width)."""
    return float(np.clip(max(size) / 640, 0.5, 1.0))


def mask_outlines(mask: np.ndarray, tolerance: float = 0.5) -> list[list[int]]:
    """The closed lines around a mask and its holes, to be filled by the even-odd rule.

    Args:
        mask: (H, W) bool.
        tolerance: pixels by which a line may miss corners.

    Returns:
        Lines [x, y, dx, dy, dx, dy, ...]: the first point, then the step to each further one, in
        quarters of a pixel from the upper left corner of the image. [] for an empty mask.
    """
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    inside = mask[top : top + height, left : left + width]
    if not inside.size:
        return []
    # OpenCV's lines run through the middle of pixels; enlarged, they run along their edge.
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
