from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lib.proposals import rle
from lib.proposals.regions import encode


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


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_proposals=st.integers(0, 6))
def test_snapping_against_a_slow_twin(seed, num_proposals):
    rng = np.random.default_rng(seed)
    proposals = rng.random((num_proposals, 3, 4)) < 0.5
    masks = rng.random((5, 3, 4)) < [[[0.0]], [[0.3]], [[0.5]], [[0.5]], [[1.0]]]
    given_ = [rle.mask_to_rle(mask) for mask in masks]
    snapped = rle.snap(given_, encode(proposals), min_iou=0.5)
    for mask, before, after in zip(masks, given_, snapped, strict=True):
        ious = [(mask & p).sum() / max((mask | p).sum(), 1) for p in proposals]
        if max(ious, default=0) < 0.5:
            assert after is before
        else:
            chosen = rle.rle_to_mask(after)
            assert any((chosen == p).all() for p in proposals)
            assert (mask & chosen).sum() / (mask | chosen).sum() == max(ious)


def test_tight_box():
    mask = np.zeros((6, 9))
    mask[2:4, 5:8] = 1
    mask[3, 5] = 0
    assert rle.tight_box(rle.mask_to_rle(mask)) == [5.0, 2.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("segmentation", "text"),
    [
        (None, "is empty"),
        ({}, "is empty"),
        ([], "is empty"),
        ({"counts": [16]}, "neither an RLE"),
        ("abc", "neither an RLE"),
        (7, "neither an RLE"),
        ([[1, 1, 2, 2]], "at least three points"),
        ([[1, 1, 2, 2, 3]], "at least three points"),
        ([[1, 1, 2, 2, 3, float("inf")]], "numbers that are not finite"),
        ([[1, 1, 2, 2, 3, 10**400]], "far outside"),
        ([[1, 1, 1e9, 2, 3, 4]], "far outside"),
        ([[5, 5, 7, 5, 7, 7]], "outside the image"),
        ([[True, 1, 2, 2, 3, 4]], "holds True, expected numbers"),
        ([[0, 0, 4, 0] * 9**6], "pixels long, at most"),
        ([[1, 1, 2, 2, 3, "4"]], "holds '4', expected numbers"),
        ([[1, 1, 2, 2, 3, float("nan")]], "numbers that are not finite"),
        ({"size": [4, 4], "counts": 3}, "counts are a int"),
        ({"size": 4, "counts": [16]}, "is 4 .*, the image 4x4"),
        ({"size": [2, 8], "counts": [16]}, "is 2x8 .*, the image 4x4"),
        ({"size": [4, 4], "counts": [4, 11]}, "cover 15 pixels, the image has 16"),
        ({"size": [4, 4], "counts": [-4, 20]}, "hold -4, expected whole numbers"),
        ({"size": [4, 4], "counts": ["4", 12]}, "hold '4', expected whole numbers"),
        ({"size": [4, 4], "counts": [4.5, 12]}, "hold 4.5, expected whole numbers"),
        ({"size": [4, 4], "counts": [None, 16]}, "hold None, expected whole numbers"),
        ({"size": [4, 4], "counts": [True, 15]}, "hold True, expected whole numbers"),
        ({"size": [4, 4], "counts": "b'\\x'"}, "text of the RLE counts is damaged"),
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


def runs_of_text(text: bytes) -> np.ndarray:
    """Run lengths of COCO's text form: 5 bits a letter, least first, bit 6 says that more follow;
    from the fourth on, a number is the difference to the last but one before it."""
    letters = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if ((letters < 0) | (letters > 63)).any() or (len(letters) and letters[-1] & 32):
        raise ValueError("the text of counts is damaged")
    if not len(letters):
        return letters
    last = (letters & 32) == 0
    start = np.flatnonzero(np.append(True, last[:-1]))
    number = np.cumsum(last) - last  # which number a letter belongs to
    place = np.arange(len(letters)) - start[number]
    if place.max() > 6:
        raise ValueError("the text of counts is damaged")
    values = np.add.reduceat((letters & 31) << (5 * place), start)
    negative = (letters[last] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    for chain in (slice(1, None, 2), slice(2, None, 2)):
        values[chain] = np.cumsum(values[chain])
    return values


def decoded(rle_, size):
    """The mask of a text form, taken apart run by run; ValueError where it is damaged."""
    runs = runs_of_text(rle_["counts"].encode())
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError("the runs do not cover the image")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def test_other_ways_to_write_a_mask():
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    packed = rle.mask_to_rle(mask)
    for form in (
        {"size": [2.0, 3.0], "counts": [2.0, 3, 1.0]},
        {"size": (2, 3), "counts": f"b'{packed['counts']}'"},
        [packed],
        [rle.mask_to_rle(mask * [1, 1, 0]), rle.mask_to_rle(mask * [0, 0, 1])],
        [[1, 0, 3, 0, 3, 1, 2, 1, 2, 2, 1, 2]],
        [1, 0, 3, 0, 3, 1, 2, 1, 2, 2, 1, 2],  # without the list around it
        [[1, 0, 3, 0, 3, 1, 2, 1, 2, 2, 1, 2], [0, 0, 1, 1]],  # a part without area
    ):
        np.testing.assert_array_equal(rle.decode(form, (2, 3)), mask)
    assert not rle.decode([[1, 1, 1.2, 1, 1.2, 1.2]], (2, 3)).any()  # tiny, but inside
    with pytest.raises(ValueError, match="list of RLEs of different sizes"):
        rle.compressed([packed, rle.mask_to_rle(mask.T)])
    with pytest.raises(ValueError, match=r"size is \[1000000000, 1000000000\]"):
        rle.compressed({"size": [10**9, 10**9], "counts": [10**18]})


def test_thousands_of_polygons_are_drawn_in_seconds():
    corners = [(x, y) for x in range(0, 600, 6) for y in range(0, 450, 3)]
    polygons = [[x, y, x + 3, y, x + 3, y + 2, x, y + 2] for x, y in corners]
    begin = time.process_time()
    mask = rle.decode(polygons, (450, 600))
    assert time.process_time() - begin < 5
    expected = np.zeros((450, 600), bool)
    for x, y in corners:
        expected[y : y + 2, x : x + 3] = True
    np.testing.assert_array_equal(mask, expected)


LETTERS = st.binary(max_size=12).map(lambda text: bytes(48 + b % 64 for b in text))


@settings(max_examples=200, deadline=None)
@given(
    mask=st.integers(0, 2**32 - 1).map(
        lambda seed: np.random.default_rng(seed).random((seed % 9 + 1, seed % 7 + 1)) < 0.5
    ),
    keep=st.integers(0, 40),
    more=LETTERS | st.just(b""),
)
def test_text_counts_against_a_slow_twin(mask, keep, more):
    """Whole texts, texts cut short, texts with letters after them."""
    counts = rle.mask_to_rle(mask)["counts"][:keep] + more.decode()
    given = {"size": list(mask.shape), "counts": counts}
    try:
        expected = decoded(given, mask.shape)
    except ValueError:
        with pytest.raises(ValueError):
            rle.compressed(given, mask.shape)
    else:
        np.testing.assert_array_equal(rle.decode(given, mask.shape), expected)
