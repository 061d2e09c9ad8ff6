"""Mined instances and labels beside true objects, by hand."""

import numpy as np
import pytest

from lib.analysis.instance_quality import (
    best_per_object,
    compare,
    instance_quality,
    label_noise,
    means,
)
from lib.proposals.regions import encode

WIDTH = 20


def strips(*spans):
    """(N, 1, WIDTH) masks of one row."""
    masks = np.zeros((len(spans), 1, WIDTH), bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


# Two objects of class 0, one of class 1; proposals: a part, a whole, a container, one elsewhere.
OBJECTS, CLASSES = strips((0, 8), (10, 14), (16, 20)), np.array([0, 0, 1])
PROPOSALS = strips((0, 2), (0, 8), (0, 16), (16, 20))


@pytest.fixture
def truth():
    return compare(encode(PROPOSALS), OBJECTS, CLASSES)


def test_overlaps_with_the_truth(truth):
    for p, proposal in enumerate(PROPOSALS):
        for g, thing in enumerate(OBJECTS):
            shared = (proposal & thing).sum()
            assert truth.iou[p, g] == pytest.approx(shared / (proposal | thing).sum())
            assert truth.coverage[p, g] == pytest.approx(shared / thing.sum())
            assert truth.purity[p, g] == pytest.approx(shared / proposal.sum())


def test_instances_are_held_against_the_object_of_their_class(truth):
    found = instance_quality(truth, np.array([0, 2, 3, 3]), np.array([0, 0, 0, 1]))
    # A part; a container that just counts; an object of another class; the right one.
    np.testing.assert_allclose(found["iou"], [2 / 8, 8 / 16, 0, 1])
    np.testing.assert_allclose(found["coverage"], [2 / 8, 1, 0, 1])
    np.testing.assert_allclose(found["purity"], [1, 0.5, 0, 1])
    assert found["good"].tolist() == [0, 1, 0, 1] and found["tight"].tolist() == [0, 0, 0, 1]
    assert found["found"].tolist() == [1, 0, 1]


def test_a_class_that_is_not_there_is_never_right(truth):
    found = instance_quality(truth, np.array([1]), np.array([4]))
    assert [found[name].tolist() for name in ("good", "iou", "purity")] == [[0], [0], [0]]


def test_wrong_labels(truth):
    column = np.array([1, 0, -1, 2])  # class 0, background, none, class 1
    at_quarter = label_noise(truth, column, 0.25)
    assert at_quarter["noise"].tolist() == [0, 0] and at_quarter["missed"].tolist() == [1]
    higher = label_noise(truth, column, 0.3)
    assert higher["noise"].tolist() == [1, 0]
    assert label_noise(truth, np.full(4, -1), 0.25)["noise"].shape == (0,)


def test_as_many_detections_as_objects(truth):
    proposal_idx, class_idx = np.array([3, 0, 1, 2, 3]), np.array([1, 0, 0, 0, 0])
    kept = best_per_object(truth, proposal_idx, class_idx)
    assert sorted(zip(*(part.tolist() for part in kept), strict=True)) == [(0, 0), (1, 0), (3, 1)]


def test_means_are_over_what_was_measured():
    one, two = {"a": np.array([1.0, 0.0, 0.0]), "b": np.zeros(0)}, {"a": np.array([1.0])}
    assert means([one, two]) == {"a": 0.5, "b": None}


def test_an_image_without_objects():
    truth = compare(encode(PROPOSALS), OBJECTS[:0], CLASSES[:0])
    assert instance_quality(truth, np.array([1]), np.array([0]))["iou"].tolist() == [0]
    assert label_noise(truth, np.array([1, 0, 0, 0]), 0.25)["noise"].tolist() == [1]
    assert all(len(part) == 0 for part in best_per_object(truth, np.arange(4), np.zeros(4, int)))


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="masks have shape"):
        compare(encode(PROPOSALS), np.zeros((1, 2, WIDTH), bool), CLASSES[:1])
