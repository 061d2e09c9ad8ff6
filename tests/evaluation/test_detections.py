from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lib.evaluation.detections import box_overlaps, select_detections, to_coco_results
from lib.structures import Detections, Regions

GOLDEN = Path(__file__).parent.parent / "golden" / "model" / "vgg16_tta.npz"


def slow_detections(scores, boxes, score_thresh, nms_thresh, limit):
    """docs/specification.md#inference word by word: class by class, pair by pair."""
    found = []
    for c in range(scores.shape[1]):
        left = [p for p in range(len(scores)) if scores[p, c] > score_thresh]
        left.sort(key=lambda p: (-scores[p, c], p))
        while left:
            best, *left = left
            found.append((best, c))
            left = [p for p in left if overlap(boxes[best], boxes[p]) < nms_thresh]
    found.sort(key=lambda pair: (-scores[pair], *pair))
    return found[:limit]


def overlap(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def pairs(detections):
    return list(zip(detections.proposal_idx.tolist(), detections.class_idx.tolist(), strict=True))


def test_golden_detections():
    if not GOLDEN.is_file():
        pytest.skip("tests/golden/model/vgg16_tta.npz is not there")
    golden = np.load(GOLDEN)
    found = select_detections(
        golden["scores"], golden["boxes"], float(golden["score_thresh"]), 0.3, 100
    )
    want = {(int(p), int(c) - 1): score for c, p, score in golden["det"]}
    got = dict(zip(pairs(found), found.scores.tolist(), strict=True))
    assert got.keys() == want.keys()
    np.testing.assert_allclose([got[k] for k in want], list(want.values()), rtol=1e-6)


def test_hand_table():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 4], [20, 0, 29, 9]])  # overlaps: 0-1 is 0.5
    scores = np.array([[0.9, 0.1], [0.8, 0.6], [0.3, 0.2]])
    kept = pairs(select_detections(scores, boxes, 0.1, 0.3, 100))
    # 0.8 falls to the 0.9 of its class, 0.1 to the 0.6 of its own.
    assert kept == [(0, 0), (1, 1), (2, 0), (2, 1)]
    # A score has to be above the threshold.
    assert pairs(select_detections(scores, boxes, 0.2, 0.3, 100)) == [(0, 0), (1, 1), (2, 0)]
    assert pairs(select_detections(scores, boxes, 0.1, 0.3, 2)) == [(0, 0), (1, 1)]
    assert pairs(select_detections(scores, boxes, 0.1, 0.3, None, np.array([0.0, 1.0]))) == [
        (1, 1),
        (2, 1),
    ]


def test_widths_count_both_ends_and_the_threshold_itself_suppresses():
    boxes = np.array([[0, 0, 9, 0], [7, 0, 9, 0]])  # 10 and 3 pixels wide, 3 in common
    assert box_overlaps(boxes)[0, 1] == np.float32(0.3)
    scores = np.array([[0.9], [0.8]])
    assert pairs(select_detections(scores, boxes, 0.0, 0.3, None)) == [(0, 0)]
    assert pairs(select_detections(scores, boxes, 0.0, 0.31, None)) == [(0, 0), (1, 0)]


def test_ties_go_to_the_first_proposal_then_the_first_class():
    scores = np.full((2, 2), 0.5)
    same = np.array([[0, 0, 9, 9], [0, 0, 9, 9]])
    apart = np.array([[0, 0, 9, 9], [20, 0, 29, 9]])
    assert pairs(select_detections(scores, same, 0.0, 0.3, None)) == [(0, 0), (0, 1)]
    assert pairs(select_detections(scores, apart, 0.0, 0.3, 3)) == [(0, 0), (0, 1), (1, 0)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_proposals=st.integers(0, 30),
    num_classes=st.integers(1, 5),
    limit=st.sampled_from([0, 1, 7, 100]),
)
def test_agrees_with_the_slow_twin(seed, num_proposals, num_classes, limit):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 12, (num_proposals, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1)
    scores = rng.integers(0, 8, (num_proposals, num_classes)) / 8  # many ties
    found = select_detections(scores, boxes, 0.2, 0.3, limit)
    assert pairs(found) == slow_detections(scores, boxes, 0.2, 0.3, limit)
    np.testing.assert_allclose(found.scores, [scores[pair] for pair in pairs(found)])


def test_wrong_input_is_refused():
    boxes = np.zeros((2, 4))
    with pytest.raises(ValueError, match="diverged"):
        select_detections(np.array([[0.5], [np.nan]]), boxes, 0.0, 0.3, None)
    with pytest.raises(ValueError, match="boxes of shape"):
        select_detections(np.zeros((3, 1)), boxes, 0.0, 0.3, None)
    with pytest.raises(ValueError, match="keep_classes"):
        select_detections(np.zeros((2, 3)), boxes, 0.0, 0.3, None, np.ones(2))


def random_regions(seed, num_proposals, size):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, size).astype(np.int32)
    labels = np.unique(labels, return_inverse=True)[1].reshape(size).astype(np.int32)
    areas = np.bincount(labels.ravel())
    membership = rng.random((num_proposals, len(areas))) < 0.4
    return Regions(labels=labels, membership=membership, areas=areas)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 12), width=st.integers(1, 12))
def test_results_hold_the_masks_of_the_proposals(seed, height, width):
    regions = random_regions(seed, 4, (height, width))
    detections = Detections(
        proposal_idx=np.array([2, 0, 2]),
        class_idx=np.array([1, 0, 0]),
        scores=np.array([0.9, 0.5, 0.25], dtype=np.float32),
    )
    results = to_coco_results(detections, regions, image_id=7, category_ids=[10, 30])
    assert [r["category_id"] for r in results] == [30, 10, 10]
    assert [r["score"] for r in results] == pytest.approx([0.9, 0.5, 0.25])
    for result, proposal in zip(results, [2, 0, 2], strict=True):
        mask = regions.masks(np.array([proposal]))[0]
        assert isinstance(result["segmentation"]["counts"], str)
        np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), mask)
        rows, columns = np.nonzero(mask)
        if len(rows):
            x, y, w, h = result["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)


def test_results_without_detections():
    nothing = Detections(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert to_coco_results(nothing, random_regions(0, 2, (4, 5)), 1, [1]) == []
