"""Hits, misses and the AP of single images, against the evaluation of each image alone."""

from __future__ import annotations

import numpy as np
import pytest

from lib.evaluation.coco_eval import evaluate_segm
from lib.evaluation.coco_files import check_results, read_ground_truth
from lib.evaluation.per_image import compare
from lib.proposals import rle

SIZE = (30, 40)


def square(top, left, side):
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return rle.mask_to_rle(mask)


def dataset(objects, num_images):
    return read_ground_truth(
        {
            "images": [
                {"id": 7 + i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]}
                for i in range(num_images)
            ],
            "categories": [{"id": 4, "name": "b"}, {"id": 1, "name": "a"}, {"id": 9, "name": "c"}],
            "annotations": [
                {"image_id": i, "category_id": c, "segmentation": s, "iscrowd": crowd}
                for i, c, s, crowd in objects
            ],
        }
    )


def found(entries, truth):
    return check_results(
        [
            {"image_id": i, "category_id": c, "score": score, "segmentation": s}
            for i, c, score, s in entries
        ],
        truth,
    )


def test_by_hand():
    truth = dataset(
        [
            (7, 1, square(0, 0, 10), 0),
            (7, 1, square(0, 20, 10), 0),
            (7, 4, square(15, 0, 10), 0),
            (8, 1, square(0, 0, 20), 1),  # a crowd
        ],
        num_images=3,
    )
    detections = found(
        [
            (7, 1, 0.2, square(0, 0, 10)),  # a hit below a miss: precision 1/2 at recall 1/2
            (7, 1, 0.9, square(20, 20, 10)),
            (8, 1, 0.8, square(2, 2, 10)),  # on the crowd
            (9, 9, 0.7, square(2, 2, 10)),
        ],
        truth,
    )
    result = compare(truth, detections)
    assert result.is_hit == [True, False, None, False]
    assert result.is_found == [True, False, False, None]
    assert result.images[7].ap == pytest.approx((0.5 * 51 / 101 + 0) / 2)
    assert (result.images[7].found, result.images[7].objects) == (1, 3)
    assert result.images[8].ap is None and result.images[8].objects == 0
    assert result.images[9].ap is None
    assert set(result.precision) == {1, 4}
    np.testing.assert_allclose(result.precision[1], [0.5] * 51 + [0.0] * 50)
    assert (result.precision[4] == 0).all()


def test_without_detections():
    truth = dataset([(7, 1, square(0, 0, 10), 0)], num_images=2)
    result = compare(truth, [])
    assert result.images[7].ap == 0 and result.images[8].ap is None
    assert result.is_found == [False]
    assert (result.precision[1] == np.zeros(101)).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("iou_thresh", [0.25, 0.5])
def test_equals_the_evaluation_of_each_image_alone(seed, iou_thresh):
    rng = np.random.default_rng(seed)

    def some(count):
        return [
            (
                int(rng.integers(7, 12)),
                int(rng.choice([1, 4, 9])),
                square(*rng.integers(0, 14, 2), int(rng.integers(6, 14))),
            )
            for _ in range(count)
        ]

    truth = dataset([(*o, int(rng.random() < 0.15)) for o in some(25)], num_images=5)
    scores = rng.choice(np.linspace(0.1, 1, 12), 60)  # with ties
    detections = found(
        [(i, c, float(s), m) for (i, c, m), s in zip(some(60), scores, strict=True)], truth
    )
    result = compare(truth, detections, iou_thresh)
    checked = 0
    for image in truth["images"]:
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        if all(a["iscrowd"] for a in objects):
            assert result.images[image["id"]].ap is None
            continue
        alone = {**truth, "images": [image], "annotations": objects}
        mine = [d for d in detections if d["image_id"] == image["id"]]
        expected = evaluate_segm(alone, mine, [iou_thresh], evaluator="pycocotools")["metrics"]
        assert result.images[image["id"]].ap == pytest.approx(*expected.values(), abs=1e-9)
        checked += 1
    assert checked >= 3
    whole = evaluate_segm(truth, detections, [iou_thresh])["metrics"]
    mean = np.mean([curve.mean() for curve in result.precision.values()])
    assert mean == pytest.approx(*whole.values(), abs=1e-9)
