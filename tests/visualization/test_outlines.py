from __future__ import annotations

import cv2
import numpy as np
import pytest

from lib.visualization.outlines import SCALE, mask_outlines


def filled(outlines, size):
    """The mask that the lines enclose, by the even-odd rule, pixel for pixel."""
    large = np.zeros((size[0] * SCALE, size[1] * SCALE), np.uint8)
    lines = [np.cumsum(np.reshape(line, (-1, 2)), axis=0).astype(np.int32) for line in outlines]
    cv2.fillPoly(large, lines, 1)
    return large.reshape(size[0], SCALE, size[1], SCALE).mean(axis=(1, 3)) > 0.5


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_a_rectangle_has_four_corners_at_the_edges_of_its_pixels():
    mask = np.zeros((40, 60), bool)
    mask[5:15, 10:30] = True
    (line,) = mask_outlines(mask)
    points = np.cumsum(np.reshape(line, (-1, 2)), axis=0)
    assert len(points) == 4
    # The far edges lie within a quarter of a pixel of where they are: one less than 30, 15.
    assert points.min(axis=0).tolist() == [40, 20]
    assert points.max(axis=0).tolist() == [119, 59]


def test_holes_and_parts_stay():
    mask = np.zeros((50, 50), bool)
    mask[5:25, 5:25] = True
    mask[10:20, 10:20] = False
    mask[14:16, 14:16] = True
    mask[40, 40] = True
    outlines = mask_outlines(mask)
    assert len(outlines) == 4
    assert iou(filled(outlines, mask.shape), mask) > 0.95


@pytest.mark.parametrize("tolerance", [0.5, 1.0])
def test_lines_enclose_the_mask(tolerance):
    y, x = np.mgrid[:120, :160]
    mask = ((y - 50) ** 2 + (x - 70) ** 2 < 45**2) & ~((y - 60) ** 2 + (x - 60) ** 2 < 12**2)
    outlines = mask_outlines(mask, tolerance)
    assert iou(filled(outlines, mask.shape), mask) > 0.97
    assert all(type(number) is int for line in outlines for number in line)


def test_the_border_of_the_image_and_nothing():
    assert iou(filled(mask_outlines(np.ones((9, 7), bool)), (9, 7)), np.ones((9, 7), bool)) == 1
    assert mask_outlines(np.zeros((9, 7), bool)) == []
