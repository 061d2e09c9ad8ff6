"""Masks as polygons, for annotation tools that cannot read run lengths (Label Studio, CVAT).

Polygons are COCO's: flat lists x, y, x, y, ... along the edges of pixels, where pixel (x, y) covers
[x, x + 1] x [y, y + 1], so that COCO's rasteriser gives the mask back.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np


def mask_to_polygons(
    mask: np.ndarray,
    tolerance: float = 0.0,
    min_part: float = 0.0,
    left_out: Counter[str] | None = None,
) -> list[list[float]]:
    """Outlines of a mask, one polygon for every part, the largest first.

    COCO's polygons have no holes. A hole is cut in by a seam, an edge there and back between the
    outline and the hole, so that every usual way of filling leaves the hole open.

    Args:
        mask: (H, W) bool.
        tolerance: pixels that a simplified outline may be off (cv2.approxPolyDP); 0 follows every
            pixel, and the polygons are the mask exactly.
        min_part: parts and holes smaller than this fraction of the mask are dropped and filled;
            the largest part always stays.
        left_out: counts the dropped `parts` and the filled `holes`.

    Returns:
        Polygons of at least three points; [] for an empty mask.
    """
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return []
    mask = mask[top : top + height, left : left + width]  # images may be enormous
    outlines, holes = _outlines(mask)
    smallest = min_part * mask.sum()
    outlines.sort(key=lambda entry: -entry[1])
    left_out = Counter() if left_out is None else left_out
    polygons = []
    for place, (number, area, outline) in enumerate(outlines):
        if place and area < smallest:
            left_out["parts"] += 1
            continue
        polygon = _simplified(outline, tolerance)
        for hole_area, hole in holes.get(number, ()):
            if hole_area >= smallest:
                polygon = _with_hole(polygon, _simplified(hole, tolerance))
            else:
                left_out["holes"] += 1
        polygons.append([float(v) for v in (polygon + (left, top)).ravel()])
    return polygons


def as_one_polygon(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Joins the parts of a mask by seams, for formats with one polygon for each instance."""
    parts = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    return [float(v) for v in functools.reduce(_with_hole, parts).ravel()]


def _outlines(
    mask: np.ndarray,
) -> tuple[list[tuple[int, float, np.ndarray]], dict[int, list[tuple[float, np.ndarray]]]]:
    """(number, area, outline) of every part, and (area, outline) of the holes by part number.

    Outlines are (N, 2) int corners of pixels, those of holes in the other direction.
    """
    # OpenCV's contours run through the centres of pixels. On the mask enlarged twice these lie at
    # 2x and 2x + 1 for pixel x, on the side where the edge is: halved and rounded up they are it.
    large = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines, holes = [], {}
    for number, contour in enumerate(contours):
        corners = _corners((contour[:, 0] + 1) // 2)
        x, y = corners.T.astype(np.int64)
        area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        parent = int(hierarchy[0, number, 3])
        if parent < 0:
            outlines.append((number, area, corners))
        else:
            holes.setdefault(parent, []).append((area, corners))
    return outlines, holes


def _corners(points: np.ndarray) -> np.ndarray:
    """Drops the points of a closed line that lie straight between their neighbours."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    back = (before * after).sum(axis=1) < 0  # the tip of a needle
    return points[turns | back]


def _simplified(outline: np.ndarray, tolerance: float) -> np.ndarray:
    if tolerance <= 0:
        return outline
    simple = cv2.approxPolyDP(outline[:, None].astype(np.int32), tolerance, True)[:, 0]
    return simple if len(simple) >= 3 else outline


def _with_hole(polygon: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One line around both: along the polygon, over the shortest seam, around the hole, back."""
    distance = ((polygon[:, None] - hole[None]) ** 2).sum(axis=2)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    around = np.concatenate([hole[j:], hole[: j + 1]])
    return np.concatenate([polygon[: i + 1], around, polygon[i:]])
