"""Masks come back bit for bit, in one canonical encoding; boxes and 7x7 masks as specified."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from lib.proposals import _regions
from lib.proposals.regions import (
    encode,
    encode_unions,
    mask_areas,
    proposals_from_masks,
    select,
)
from tests.proposals.cases import any_masks

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "heads").glob("heads_*.npz"))


def assert_encodes(regions, masks):
    num_regions = len(regions.areas)
    assert regions.labels.dtype == np.int32 and regions.labels.shape == masks.shape[1:]
    assert regions.membership.dtype == bool and regions.membership.shape[0] == len(masks)
    np.testing.assert_array_equal(regions.masks(), masks)
    np.testing.assert_array_equal(np.bincount(regions.labels.ravel()), regions.areas)
    first = np.unique(regions.labels, return_index=True)[1]
    assert (np.diff(first) > 0).all(), "not numbered by first pixel"
    assert len(np.unique(regions.membership.T, axis=0)) == num_regions, "regions not maximal"


@settings(max_examples=300, deadline=None)
@given(any_masks())
def test_masks_come_back_bit_for_bit(masks):
    assert_encodes(encode(masks), masks)


@settings(deadline=None)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=20)))
def test_arbitrary_masks_come_back(masks):
    assert_encodes(encode(masks), masks)


@pytest.mark.parametrize("num_proposals", [0, 1, 7, 8, 9, 63, 64, 65, 128, 130])
def test_number_of_proposals_around_word_borders(num_proposals):
    rng = np.random.default_rng(num_proposals)
    masks = rng.random((num_proposals, 61, 71)) < 0.3  # 4,331 pixels: several tiles and a rest
    assert_encodes(encode(masks), masks)


def test_as_many_regions_as_pixels():
    size = (37, 55)
    pixel = np.arange(size[0] * size[1]).reshape(size)
    masks = np.array([pixel >> bit & 1 for bit in range(11)], bool)
    regions = encode(masks)
    assert len(regions.areas) == pixel.size
    assert_encodes(regions, masks)


def test_equal_hashes_are_told_apart():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2, (3000, 8)).astype(np.uint8)
    expected = _regions.number_keys(keys)
    assert len(expected[1]) > 200
    for hash_mask in (0, 1, 255):
        for got, want in zip(_regions.number_keys(keys, hash_mask), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_numbers_other_than_one_are_inside():
    masks = np.array([[[0, 3], [255, 0]]])
    np.testing.assert_array_equal(encode(masks).masks(), masks > 0)
    not_quite_bool = np.array([[[0, 2], [255, 0]]], np.uint8).view(bool)
    np.testing.assert_array_equal(encode(not_quite_bool).masks(), not_quite_bool)


def test_not_contiguous_masks():
    masks = np.random.default_rng(1).random((9, 7, 12)) < 0.5
    np.testing.assert_array_equal(encode(masks.T).masks(), masks.T)


@pytest.mark.parametrize("shape", [(4, 5), (2, 0, 5), (2, 5, 0)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match="expected \\(P, H, W\\)"):
        encode(np.zeros(shape, bool))


@settings(deadline=None)
@given(any_masks(), st.randoms(use_true_random=False))
def test_selection_equals_encoding_the_chosen(masks, random):
    idx = np.array([i for i in range(len(masks)) if random.random() < 0.5], int)
    chosen, direct = select(encode(masks), idx), encode(masks[idx])
    for name in ("labels", "membership", "areas"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(direct, name))


def test_unions_of_cells_equal_encoding_their_masks():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 40, (20, 30))
    membership = rng.random((70, 45)) < 0.4  # five cells have no pixel
    direct = encode(membership[:, labels])
    unions = encode_unions(labels, membership)
    for name in ("labels", "membership", "areas"):
        np.testing.assert_array_equal(getattr(unions, name), getattr(direct, name))


def test_areas():
    masks = np.random.default_rng(3).random((6, 9, 4)) < 0.5
    np.testing.assert_array_equal(mask_areas(encode(masks)), masks.sum((1, 2)))


def test_boxes_by_hand():
    masks = np.zeros((5, 4, 6), bool)
    masks[0, 1:3, 2:4] = True
    masks[1] = True
    masks[2, 3, 5] = True  # the last pixel: its box has no extent after clipping
    masks[3, 0, 0] = masks[3, 2, 4] = True
    expected = [[2, 1, 4, 3], [0, 0, 5, 3], [5, 3, 5, 3], [0, 0, 5, 3], [0, 0, 0, 0]]
    got = proposals_from_masks(masks).boxes
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


@settings(deadline=None)
@given(any_masks())
def test_boxes_against_slow_twin(masks):
    height, width = masks.shape[1:]
    expected = np.zeros((len(masks), 4), np.float32)
    for row, mask in zip(expected, masks, strict=True):
        y, x = np.nonzero(mask)
        if len(y):
            row[:] = x.min(), y.min(), min(x.max() + 1, width - 1), min(y.max() + 1, height - 1)
    np.testing.assert_array_equal(proposals_from_masks(masks).boxes, expected)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_boxes(path):
    golden = np.load(path)
    height, width = int(golden["height"]), int(golden["width"])
    packed = np.unpackbits(golden["masks"], axis=1, count=height * width)
    masks = packed.reshape(-1, height, width).astype(bool)
    limit = [width - 1, height - 1, width - 1, height - 1]  # the vectors are not clipped yet
    np.testing.assert_array_equal(
        proposals_from_masks(masks).boxes, np.minimum(golden["rois"][:, 1:], limit)
    )


def test_roi_masks_by_hand():
    masks = np.zeros((2, 6, 9), bool)
    masks[0, 1:4, 2] = True  # 3 rows, 1 column
    masks[0, 1, 2:4] = True  # and one pixel to the right at the top
    got = proposals_from_masks(masks).roi_masks
    assert got.dtype == bool and got.shape == (2, 7, 7)
    rows = np.arange(7)
    # 3 rows over 7 cells: 0 0 1 1 1 2 2; 2 columns: 0 0 0 1 1 1 1 (cell 3 is an exact tie)
    expected = np.ones((7, 7), bool)
    expected[rows >= 2, 3:] = False
    np.testing.assert_array_equal(got[0], expected)
    assert not got[1].any()


@settings(deadline=None)
@given(any_masks())
def test_roi_masks_against_slow_twin(masks):
    got = proposals_from_masks(masks).roi_masks
    for mask, sampled in zip(masks, got, strict=True):
        y, x = np.nonzero(mask)
        if len(y) == 0:
            assert not sampled.any()
            continue
        crop = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
        rows = [(2 * i + 1) * crop.shape[0] // 14 for i in range(7)]
        columns = [(2 * i + 1) * crop.shape[1] // 14 for i in range(7)]
        np.testing.assert_array_equal(sampled, crop[np.ix_(rows, columns)])


def test_roi_masks_equal_pillow_without_ties():
    rng = np.random.default_rng(4)
    for height in (1, 3, 5, 9, 33, 101):  # odd sides have no ties
        for width in (1, 7, 13, 55):
            mask = rng.random((height, width)) < 0.5
            mask[[0, -1]] = mask[:, [0, -1]] = True
            pillow = Image.fromarray(mask.astype(np.uint8)).resize((7, 7), Image.NEAREST)
            np.testing.assert_array_equal(
                proposals_from_masks(mask[None]).roi_masks[0], np.asarray(pillow) > 0
            )


def test_proposals_carry_all_three():
    masks = np.random.default_rng(5).random((4, 8, 11)) < 0.4
    proposals = proposals_from_masks(masks)
    assert len(proposals) == 4
    np.testing.assert_array_equal(proposals.regions.masks(), masks)
    assert (len(proposals.boxes), len(proposals.roi_masks)) == (4, 4)
    assert len(proposals_from_masks(np.zeros((0, 3, 5), bool))) == 0
