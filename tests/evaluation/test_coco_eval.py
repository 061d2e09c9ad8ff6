from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from lib.evaluation.coco_eval import evaluate_segm, format_metrics, metric_name
from lib.proposals import rle


def strip(start, length, size=(10, 20)):
    """A mask of the pixels start .. start + length - 1 of the top row."""
    mask = np.zeros(size, dtype=bool)
    mask[0, start : start + length] = True
    return rle.mask_to_rle(mask)


def truth_of(masks, categories=((3, "cat"), (1, "dog"))):
    """masks: (image_id, category_id, rle)"""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 10, "width": 20} for i in (5, 2, 9)
        ],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "segmentation": m, "iscrowd": 0}
            for n, (i, c, m) in enumerate(masks, start=1)
        ],
    }


def found(image_id, category_id, score, mask):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "segmentation": mask,
        "bbox": rle.tight_box(mask),
    }


TRUTH = truth_of([(5, 3, strip(0, 10)), (2, 3, strip(0, 4)), (2, 1, strip(8, 6))])


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_perfect_masks_give_one(evaluator):
    results = [
        found(a["image_id"], a["category_id"], 0.5, a["segmentation"]) for a in TRUTH["annotations"]
    ]
    evaluation = evaluate_segm(TRUTH, results, coco_ap=True, evaluator=evaluator)
    metrics = evaluation["metrics"]
    assert metrics.pop("ap_medium") is None and metrics.pop("ap_large") is None
    assert metrics == dict.fromkeys(["ap25", "ap50", "ap70", "ap75", "ap", "ap_small"], 1.0)
    assert evaluation["per_class"]["cat"]["objects"] == 2
    assert evaluation["num_images"] == 3
    assert evaluation["num_detections"] == 3


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_hand_example(evaluator):
    results = [
        found(5, 3, 0.9, strip(0, 6)),  # IoU 6/10 with the first cat: right up to 0.6
        found(2, 3, 0.8, strip(10, 4)),  # nothing there
        found(2, 3, 0.7, strip(0, 4)),  # the second cat, exactly
        found(2, 1, 0.6, strip(8, 3)),  # IoU 3/6 with the dog: a hit at 0.5 itself
    ]
    evaluation = evaluate_segm(TRUTH, results, (0.25, 0.5, 0.7), evaluator=evaluator)
    # At 0.5 the cats are right, wrong, right: precision 1 up to recall 0.5 (51 of the 101
    # points), 2/3 above. At 0.7 only the third is right: 1/3 up to recall 0.5, then 0.
    cat50, cat70 = (51 + 50 * 2 / 3) / 101, 51 / 3 / 101
    per_class = evaluation["per_class"]
    assert per_class["cat"]["ap25"] == pytest.approx(cat50)
    assert per_class["cat"]["ap50"] == pytest.approx(cat50)
    assert per_class["cat"]["ap70"] == pytest.approx(cat70)
    assert per_class["dog"] == {"objects": 1, "ap25": 1.0, "ap50": 1.0, "ap70": 0.0}
    assert evaluation["metrics"]["ap50"] == pytest.approx((cat50 + 1) / 2)
    assert evaluation["metrics"]["ap70"] == pytest.approx(cat70 / 2)


def random_case(seed):
    rng = np.random.default_rng(seed)

    def blob():
        mask = np.zeros((10, 20), dtype=bool)
        y, x = rng.integers(0, 8), rng.integers(0, 16)
        mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 9)] = True
        return mask

    masks = [(int(rng.choice([5, 2, 9])), int(rng.choice([1, 3, 8])), blob()) for _ in range(12)]
    truth = truth_of(
        [(i, c, rle.mask_to_rle(m)) for i, c, m in masks],
        ((8, "bird"), (3, "cat"), (1, "dog"), (4, "never there")),
    )
    truth["annotations"][3]["iscrowd"] = 1
    for annotation in truth["annotations"][:4]:
        annotation["area"] = 5000.0  # medium to COCO, whatever the mask is
    results = [
        found(i, c, float(rng.integers(0, 4)) / 4, rle.mask_to_rle(m & (rng.random(m.shape) < 0.9)))
        for i, c, m in masks + masks[:5]
    ]
    results += [
        found(int(rng.choice([5, 2])), int(rng.choice([1, 3, 4])), 0.3, rle.mask_to_rle(blob()))
        for _ in range(120)
    ]
    return truth, results


@pytest.mark.parametrize("seed", range(6))
def test_both_evaluators_agree(seed):
    truth, results = random_case(seed)
    ours = evaluate_segm(truth, results, coco_ap=True)
    oracle = evaluate_segm(truth, results, coco_ap=True, evaluator="pycocotools")
    assert 0 < ours["metrics"]["ap25"] < 1
    assert "never there" not in ours["per_class"]
    assert ours.pop("evaluator") == "hotcoco"
    assert oracle.pop("evaluator") == "pycocotools"
    assert ours == oracle


def test_the_standard_numbers_are_those_of_pycocotools(tmp_path):
    """Against the plain use of the library: loadRes, default parameters, summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = random_case(1)
    for annotation in truth["annotations"]:
        annotation.setdefault("area", float(rle.area(annotation["segmentation"])))
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    gt = COCO(str(path))
    bare = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    standard = COCOeval(gt, gt.loadRes(bare), "segm")
    standard.evaluate()
    standard.accumulate()
    standard.summarize()
    metrics = evaluate_segm(path, results, (0.5, 0.75), coco_ap=True)["metrics"]
    names = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
    assert [-1 if metrics[n] is None else metrics[n] for n in names] == pytest.approx(
        standard.stats[:6].tolist()
    )


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_sizes_go_by_the_area_of_the_mask(evaluator):
    """A wrong detection counts against the size that its own mask has."""
    diagonal = np.eye(90, dtype=bool)
    block = np.zeros((90, 90), dtype=bool)
    block[:50, 40:] = True
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 90, "width": 90}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": rle.mask_to_rle(block)}
        ],
    }
    right = found(1, 1, 0.5, rle.mask_to_rle(block))
    thin = found(1, 1, 0.9, rle.mask_to_rle(diagonal))  # 90 pixels in a box of 90 x 90
    thick = found(1, 1, 0.9, rle.mask_to_rle(np.roll(block, 40, axis=0)))
    for wrong, medium in ((thin, 1.0), (thick, 0.5)):
        metrics = evaluate_segm(truth, [right, wrong], coco_ap=True, evaluator=evaluator)["metrics"]
        assert metrics["ap"] == pytest.approx(0.5)
        assert metrics["ap_medium"] == pytest.approx(medium)


def test_only_the_hundred_best_of_an_image_and_class_count():
    wrong = [found(5, 3, 0.9, strip(12, 4)) for _ in range(100)]
    results = [*wrong, found(5, 3, 0.1, strip(0, 10))]
    assert evaluate_segm(TRUTH, results)["metrics"]["ap50"] == 0.0
    assert evaluate_segm(TRUTH, results[1:])["metrics"]["ap50"] > 0.0


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_no_detections_give_zero_and_a_warning(evaluator, caplog):
    evaluation = evaluate_segm(TRUTH, [], evaluator=evaluator)
    assert evaluation["metrics"] == dict.fromkeys(["ap25", "ap50", "ap70", "ap75"], 0.0)
    assert "no detections" in caplog.text


def test_polygons_and_runs_are_read():
    truth = copy.deepcopy(TRUTH)
    truth["annotations"][0]["segmentation"] = [[0, 0, 10, 0, 10, 1, 0, 1]]
    truth["annotations"][1]["segmentation"] = rle.uncompressed(strip(0, 4))
    results = [
        found(a["image_id"], a["category_id"], 0.5, a["segmentation"]) for a in TRUTH["annotations"]
    ]
    assert evaluate_segm(truth, results)["metrics"]["ap75"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, "the detections: entry 1: score is nan"),
        ({"score": "0.5"}, "score is '0.5'"),
        ({"image_id": 77}, "image 77, which the data set does not list"),
        ({"category_id": 2}, "category 2, the data set has 1, 3"),
        ({"segmentation": rle.mask_to_rle(np.ones((20, 10)))}, r"2.png.*20x10.*the image 10x20"),
        (
            {"segmentation": {"size": [10, 20], "counts": [3, 4]}},
            "cover 7 pixels, the image has 200",
        ),
        ({"segmentation": []}, "2.png.*the segmentation is empty"),
        ({"segmentation": [[1, 2, 3]]}, "at least three points"),
    ],
)
def test_wrong_results_are_named(change, message):
    good = found(2, 3, 0.5, strip(0, 4))
    with pytest.raises(ValueError, match=message):
        evaluate_segm(TRUTH, [good, {**good, **change}])


def test_missing_field_of_a_result_is_named():
    with pytest.raises(ValueError, match="entry 0: score missing"):
        evaluate_segm(TRUTH, [{"image_id": 2, "category_id": 3, "segmentation": strip(0, 4)}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("categories"), "no list 'categories'"),
        (lambda t: t["annotations"].clear(), "nothing to evaluate against"),
        (
            lambda t: t["annotations"][1].update(image_id=4),
            r"annotations\[1\] \(id 2\) has image_id 4, which is not in",
        ),
        (
            lambda t: t["annotations"][1].update(category_id=4),
            r"annotations\[1\] \(id 2\) has category_id 4, which is not in",
        ),
        (
            lambda t: t.pop("annotations"),
            "no list 'annotations' .*to compare with; .*export.py submission",
        ),
        (
            lambda t: [a.pop("segmentation") for a in t["annotations"]],
            r"none of the 3 annotations has a usable mask: annotations\[0\] \(id 1\): .*is empty",
        ),
        (lambda t: t["images"][0].pop("height"), r"images\[0\] \(id 5\) has no 'height'"),
        (
            lambda t: t["images"].append(t["images"][0]),
            r"images\[0\] and images\[3\] have the same id, 5",
        ),
    ],
)
def test_wrong_ground_truth_is_named(change, message, tmp_path):
    truth = copy.deepcopy(TRUTH)
    change(truth)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_segm(path, [])
    assert str(path) in str(caught.value)


def test_a_result_file_is_not_ground_truth(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="a list is a result file"):
        evaluate_segm(path, [])


def test_table():
    table = format_metrics(evaluate_segm(TRUTH, [found(2, 1, 1.0, strip(8, 6))]), per_class=True)
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["class", "objects", "AP25", "AP50", "AP70", "AP75"]
    assert lines[2].split() == ["dog", "1", "100.0", "100.0", "100.0", "100.0"]
    assert lines[-1].split() == ["mean", "of", "2", "classes", "3", "50.0", "50.0", "50.0", "50.0"]


def test_metric_names():
    assert [metric_name(t) for t in (0.25, 0.5, 0.7, 0.125)] == ["ap25", "ap50", "ap70", "ap12.5"]
