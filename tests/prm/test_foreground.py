"""lib/prm/foreground.py on small images made by hand."""

import numpy as np
import pytest

from lib.prm.foreground import (
    Foreground,
    SeenImage,
    _find_objects,
    _Overlap,
    fit_foreground,
    foreground_clusters,
)
from lib.prm.peaks import Peaks
from lib.proposals.regions import encode

GRID = 8
"""Cells along each side; a cell is 8 x 8 pixels."""


def box(y, x, height, width):
    mask = np.zeros((64, 64), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def seen(masks, class_idx=(0,), told=None, rng=None):
    """An image whose objects of every class are `masks`; it responds at `told`, a box in cells."""
    features = (
        np.zeros((4, GRID, GRID), np.float32)
        if rng is None
        else rng.normal(scale=0.3, size=(4, GRID, GRID))
    )
    response = np.full((len(class_idx), GRID, GRID), -1, np.float32)
    points = []
    for n, mask in enumerate(masks):
        cells = mask.reshape(GRID, 8, GRID, 8).mean(axis=(1, 3))
        features[0] += cells
        features[1] -= cells
        y, x = (int(v[0]) for v in np.nonzero(cells)) if told is None else told
        response[n % len(class_idx), y, x] = 5
        points.append((class_idx[n % len(class_idx)], y, x))
    c, y, x = np.array(points, np.int64).T
    peaks = Peaks((GRID, GRID), c, y, x, np.full(len(c), 5, np.float32), np.zeros(len(c), bool))
    return SeenImage(peaks, np.array(class_idx), response, features.astype(np.float16))


def known(num_classes=1):
    """Tells objects by the first feature."""
    weight = np.zeros((num_classes, 4), np.float32)
    weight[:, 0] = 10
    return Foreground(np.zeros(4, np.float32), weight, np.full(num_classes, -5, np.float32))


def members(clusters):
    return {int(k): np.flatnonzero(clusters.number == k).tolist() for k in set(clusters.number)}


def test_learns_the_whole_object_where_the_response_shows_a_part():
    rng = np.random.default_rng(0)
    images, regions, objects = [], [], []
    for _ in range(12):
        y, x = rng.integers(0, 4, 2) * 8
        whole, part = box(y, x, 32, 24), box(y, x, 8, 8)
        around, other = box(max(y - 8, 0), max(x - 8, 0), 56, 56), box(0, 48, 64, 16)
        objects.append(whole)
        images.append(seen([whole], rng=rng))
        regions.append(encode(np.stack([part, around, whole, other])))
    overlap = _Overlap(regions[0])
    before = _find_objects(overlap, images[0].response[0], 0.5, np.zeros(0, np.int64)).picks
    foreground = fit_foreground(images, regions.__getitem__, num_classes=2)
    right = 0
    for image, proposals, mask in zip(images, regions, objects, strict=True):
        cells = mask.reshape(GRID, 8, GRID, 8).all(axis=(1, 3))
        prob = foreground.prob(image)[0]
        right += (prob[cells].mean() > 0.7) and (prob[~cells].mean() < 0.3)
        clusters = foreground_clusters(proposals, image, foreground)
        assert 2 in members(clusters)[1] and 0 not in members(clusters)[1]
        assert clusters.column[2] == 1
    assert right == len(images)
    assert before == [0]  # which by the response alone was the part
    again = fit_foreground(images, regions.__getitem__, num_classes=2)
    assert np.array_equal(again.weight, foreground.weight)
    assert np.isfinite(foreground.weight[1]).all()  # a class without images


def test_single_objects_take_the_place_of_their_group():
    left, right = box(16, 8, 32, 24), box(16, 32, 32, 24)
    regions = encode(np.stack([left | right, left, right, box(0, 0, 16, 64)]))
    clusters = foreground_clusters(regions, seen([left, right]), known())
    assert sorted(map(tuple, (members(clusters)[k] for k in (1, 2)))) == [(1,), (2,)]
    assert clusters.column.tolist() == [0, 1, 1, -1]  # the group touches both, the sky none
    # Two peaks in one object, and nothing that covers one of them alone.
    both = seen([left | right, left | right], told=(3, 2))
    assert members(foreground_clusters(regions, both, known()))[1] == [0]


def test_an_object_elsewhere_comes_beside_the_best():
    large, small = box(0, 0, 40, 40), box(48, 48, 16, 16)
    regions = encode(np.stack([large, small]))
    image = seen([large, small])
    clusters = foreground_clusters(regions, image, known())
    assert members(clusters) == {1: [0], 2: [1]} or members(clusters) == {0: [1], 1: [0]}


def test_every_class_finds_its_own_objects():
    first, second = box(0, 0, 40, 40), box(48, 48, 16, 16)
    image = seen([first, second], class_idx=(0, 2))
    image.features[2:] = 0
    image.features[2, 6:, 6:] = 1
    foreground = known(3)
    foreground.weight[2] = 0, 0, 10, 0
    clusters = foreground_clusters(encode(np.stack([first, second])), image, foreground)
    assert clusters.column.tolist() == [1, 3]


def test_sums_are_those_of_the_masks():
    rng = np.random.default_rng(1)
    masks = rng.random((5, 64, 64)) > 0.6
    overlap = _Overlap(encode(masks))
    values = rng.random((64, 64)).astype(np.float32)
    sums, total = overlap.sums(values)
    assert sums == pytest.approx([values[mask].sum() for mask in masks], rel=1e-5)
    assert total == pytest.approx(values.sum(), rel=1e-5)
    wanted = [[(a & b).sum() / (a | b).sum() for b in masks[1:3]] for a in masks]
    assert overlap.iou([1, 2]) == pytest.approx(np.array(wanted), rel=1e-5)


def test_without_proposals():
    regions = encode(np.zeros((0, 64, 64), bool))
    image = seen([box(0, 0, 8, 8)])
    clusters = foreground_clusters(regions, image, known())
    assert len(clusters.number) == len(clusters.column) == 0
    foreground = fit_foreground([image], lambda _: regions, 1)
    assert np.isfinite(foreground.weight).all()
