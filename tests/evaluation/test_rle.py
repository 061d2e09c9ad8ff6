from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lib.evaluation import rle


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9))
def test_runs_come_back(seed, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    packed = rle.mask_to_rle(mask)
    runs = rle.uncompressed(packed)
    assert all(type(n) is int for n in (*runs["counts"], *runs["size"]))
    assert rle.compressed(runs, (height, width)) == packed
    np.testing.assert_array_equal(rle.rle_to_mask(packed), mask)
    assert rle.area(packed) == mask.sum()


def test_hand_runs():
    mask = np.array([[1, 0, 1], [1, 0, 0]])  # column by column: 1 1 0 0 1 0
    assert rle.uncompressed(rle.mask_to_rle(mask)) == {"size": [2, 3], "counts": [0, 2, 2, 1, 1]}
    assert rle.uncompressed(rle.mask_to_rle(mask[:, 1:])) == {"size": [2, 2], "counts": [2, 1, 1]}
    assert rle.uncompressed(rle.mask_to_rle(0 * mask)) == {"size": [2, 3], "counts": [6]}
    assert rle.uncompressed(rle.mask_to_rle(0 * mask + 1)) == {"size": [2, 3], "counts": [0, 6]}


def test_counts_as_bytes_become_text():
    encoded = coco_mask.encode(np.asfortranarray(np.eye(4, dtype=np.uint8)))
    assert isinstance(encoded["counts"], bytes)
    assert isinstance(rle.compressed(encoded, (4, 4))["counts"], str)


def test_tight_box():
    mask = np.zeros((6, 9))
    mask[2:4, 5:8] = 1
    mask[3, 5] = 0
    assert rle.tight_box(rle.mask_to_rle(mask)) == [5.0, 2.0, 3.0, 2.0]


@pytest.mark.parametrize("segmentation", [None, {}, [], "abc", {"size": [4, 4], "counts": 3}])
def test_other_forms_are_refused(segmentation):
    with pytest.raises(ValueError):
        rle.compressed(segmentation, (4, 4))
