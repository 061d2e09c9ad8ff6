from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lib.evaluation import rle
from lib.proposals.readers.coco_rle import decode_rle


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


@pytest.mark.parametrize(
    ("segmentation", "text"),
    [
        (None, "neither an RLE"),
        ({}, "neither an RLE"),
        ([], "neither an RLE"),
        ("abc", "neither an RLE"),
        ([[1, 1, 2, 2]], "at least three points"),
        ([[1, 1, 2, 2, 3, "4"]], "holds '4', expected numbers"),
        ([[1, 1, 2, 2, 3, float("nan")]], "holds nan, expected numbers"),
        ({"size": [4, 4], "counts": 3}, "counts are a int"),
        ({"size": 4, "counts": [16]}, "is 4 .*, the image 4x4"),
        ({"size": [2, 8], "counts": [16]}, "is 2x8 .*, the image 4x4"),
        ({"size": [4, 4], "counts": [4, 11]}, "cover 15 pixels, the image 16"),
        ({"size": [4, 4], "counts": [-4, 20]}, "hold -4, expected whole numbers"),
        ({"size": [4, 4], "counts": ["4", 12]}, "hold '4', expected whole numbers"),
        ({"size": [4, 4], "counts": [4.0, 12]}, "hold 4.0, expected whole numbers"),
        ({"size": [4, 4], "counts": ""}, "cover 0 pixels, the image has 16"),
        ({"size": [4, 4], "counts": "04"}, "cover 4 pixels, the image has 16; .*cut short"),
        ({"size": [4, 4], "counts": "231"}, "cover 6 pixels"),
        ({"size": [4, 4], "counts": "4P"}, "text of the RLE counts is damaged"),
        ({"size": [4, 4], "counts": "4é"}, "text of the RLE counts is damaged"),
        ({"size": [4, 4], "counts": "4=0"}, "damaged .*exceed"),
        ({"size": [4, 4], "counts": "4O="}, "damaged .*negative"),
    ],
)
def test_malformed_segmentations_are_refused(segmentation, text):
    with pytest.raises(ValueError, match=text):
        rle.compressed(segmentation, (4, 4))


LETTERS = st.binary(max_size=12).map(lambda text: bytes(48 + b % 64 for b in text))


@settings(max_examples=200, deadline=None)
@given(
    mask=st.integers(0, 2**32 - 1).map(
        lambda seed: np.random.default_rng(seed).random((seed % 9 + 1, seed % 7 + 1)) < 0.5
    ),
    keep=st.integers(0, 40),
    more=LETTERS | st.just(b""),
)
def test_text_counts_are_taken_where_the_reader_of_proposals_takes_them(mask, keep, more):
    """Whole texts, texts cut short, texts with letters after them; the reader decodes in full."""
    counts = rle.mask_to_rle(mask)["counts"][:keep] + more.decode()
    given = {"size": list(mask.shape), "counts": counts}
    try:
        decoded = decode_rle(given)
    except ValueError:
        with pytest.raises(ValueError):
            rle.compressed(given, mask.shape)
    else:
        np.testing.assert_array_equal(rle.rle_to_mask(rle.compressed(given, mask.shape)), decoded)
