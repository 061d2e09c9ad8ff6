from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lib.evaluation.polygons import as_one_polygon, mask_to_polygons
from lib.proposals import rle


def drawn(polygons, size):
    """By COCO's rasteriser."""
    if not polygons:
        return np.zeros(size, bool)
    return rle.rle_to_mask(rle.compressed(polygons, size))


def ring(size=(20, 30)):
    mask = np.zeros(size, bool)
    mask[2:17, 3:25] = True
    mask[6:10, 8:14] = False
    return mask


def test_by_hand():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:7] = True
    mask[3:5, 2:4] = True
    (polygon,) = mask_to_polygons(mask)
    corners = {tuple(p) for p in np.reshape(polygon, (-1, 2)).tolist()}
    assert corners == {(2, 1), (7, 1), (7, 3), (4, 3), (4, 5), (2, 5)}
    assert len(polygon) == 12
    assert all(type(v) is float for v in polygon)


def test_one_pixel():
    mask = np.zeros((3, 3), bool)
    mask[1, 2] = True
    (polygon,) = mask_to_polygons(mask, tolerance=2.0)
    assert {tuple(p) for p in np.reshape(polygon, (-1, 2))} == {(2, 1), (3, 1), (3, 2), (2, 2)}
    assert mask_to_polygons(np.zeros((3, 3), bool)) == []


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_the_exact_outline_gives_every_mask_back(mask):
    polygons = mask_to_polygons(mask)
    assert all(len(p) >= 8 for p in polygons)
    np.testing.assert_array_equal(drawn(polygons, mask.shape), mask)


def test_a_hole_is_cut_in_by_a_seam():
    mask = ring()
    (polygon,) = mask_to_polygons(mask)
    assert len(polygon) == 2 * (4 + 4 + 2)
    np.testing.assert_array_equal(drawn([polygon], mask.shape), mask)
    # Another rasteriser, by the even-odd rule, in the centres of the pixels.
    points = np.reshape(polygon, (-1, 2))
    even_odd = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(even_odd, [(points * 256 - 128).round().astype(np.int32)], 1, shift=8)
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3)))
    outside = 1 - cv2.dilate(mask.astype(np.uint8), np.ones((3, 3)))
    assert even_odd[inside == 1].all()
    assert not even_odd[outside == 1].any()


def test_tiny_parts_and_holes_are_left_out_and_counted():
    mask = ring()
    mask[12, 20] = False
    mask[18, 28] = True
    left_out = Counter()
    (polygon,) = mask_to_polygons(mask, min_part=0.01, left_out=left_out)
    assert left_out == {"parts": 1, "holes": 1}
    np.testing.assert_array_equal(drawn([polygon], mask.shape), ring())
    assert len(mask_to_polygons(mask)) == 2
    # The largest part stays, however small the others make it.
    dots = np.zeros((9, 9), bool)
    dots[::2, ::2] = True
    assert len(mask_to_polygons(dots, min_part=0.5)) == 1


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_a_simplified_outline_is_close_and_short(tolerance):
    mask = np.zeros((80, 100), np.uint8)
    cv2.ellipse(mask, (48, 40), (37, 25), 20, 0, 360, 1, -1)
    exact, simple = mask_to_polygons(mask.astype(bool)), mask_to_polygons(mask > 0, tolerance)
    assert len(simple[0]) < 0.8 * len(exact[0])
    found = drawn(simple, mask.shape)
    assert (found & (mask > 0)).sum() / (found | (mask > 0)).sum() > 1 - 0.03 * tolerance


def test_parts_are_joined_by_seams_along_the_nearest_points():
    mask = np.zeros((6, 20), bool)
    mask[1:5, 1:5] = mask[2:4, 9:11] = mask[1:3, 15:19] = True
    polygons = mask_to_polygons(mask)
    one = as_one_polygon(polygons)
    assert len(polygons) == 3
    assert rle.area(rle.compressed([one], mask.shape)) == mask.sum()
    points = np.reshape(one, (-1, 2))
    assert len(points) == sum(len(p) // 2 for p in polygons) + 2 * (len(polygons) - 1)
    assert as_one_polygon(polygons[:1]) == polygons[0]
