"""Mask AP of detections against COCO ground truth.

`hotcoco` computes it (the same numbers as pycocotools, many times faster); pycocotools can be
chosen instead, and is the oracle in the tests. One crashes on an empty list and both accept NaN
scores silently, so everything is checked first, see coco_files.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
from pycocotools import coco as pycoco
from pycocotools.cocoeval import COCOeval

from lib.evaluation.coco_files import check_results, read_ground_truth
from lib.files import read_json
from lib.proposals import rle

logger = logging.getLogger(__name__)

VOC_THRESHOLDS = (0.25, 0.5, 0.7, 0.75)
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
EVALUATORS = ("hotcoco", "pycocotools")
_SIZES = ("all", "small", "medium", "large")
"""Order of the area ranges in both evaluators: below 32 x 32 px, up to 96 x 96 px, above."""


def evaluate_segm(
    ground_truth: str | Path | dict[str, Any],
    results: str | Path | Sequence[dict[str, Any]],
    iou_thresholds: Sequence[float] = VOC_THRESHOLDS,
    coco_ap: bool = False,
    evaluator: str = "hotcoco",
) -> dict[str, Any]:
    """Average precision of instance masks, as the COCO evaluation defines it.

    The 100 best detections per image and class count, crowd regions are neither hit nor missed,
    and the mean is taken over the classes that occur in the ground truth.

    Args:
        ground_truth: a COCO json with masks, as file or content.
        results: COCO results (image_id, category_id, score, segmentation), as file or content.
            With none, every AP is 0 and a warning says so.
        iou_thresholds: each gives one AP, named ap25 for 0.25 (a fraction of a percent as ap12.5).
        coco_ap: also gives `ap` (mean over IoU 0.5, 0.55 .. 0.95), and `ap_small`, `ap_medium` and
            `ap_large` by the area of the object.
        evaluator: `hotcoco` or `pycocotools`.

    Returns:
        `metrics` {name: AP in [0, 1]}, `per_class` {class name: {name: AP, "objects": count}} for
        the classes that occur, `num_images`, `num_objects`, `num_detections`, `evaluator`. The AP
        of a size that no object has is None.

    Raises:
        ValueError: see `read_ground_truth` and `check_results`; also where no object is annotated.
    """
    if evaluator not in EVALUATORS:
        raise ValueError(f"evaluator {evaluator!r} is not known; take one of {EVALUATORS}")
    truth = read_ground_truth(ground_truth)
    objects = Counter(a["category_id"] for a in truth["annotations"] if not a["iscrowd"])
    if not objects:
        name = "the ground truth" if isinstance(ground_truth, dict) else ground_truth
        raise ValueError(f"{name}: no annotated object; there is nothing to evaluate against")
    if isinstance(results, str | Path):
        detections = check_results(read_json(results), truth, name=str(results))
    else:
        detections = check_results(results, truth)
    if not detections:
        logger.warning("there are no detections: every AP is 0")
    thresholds = list(COCO_THRESHOLDS) if coco_ap else []
    thresholds += [t for t in iou_thresholds if not any(math.isclose(t, c) for c in thresholds)]
    open_evaluation = hotcoco_evaluation if evaluator == "hotcoco" else _pycocotools_evaluation
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        precision = precision_curves(open_evaluation(truth, detections), thresholds)
    average = precision.mean(axis=1)  # (T, C, sizes) AP, -1 where there is nothing to find

    columns = {
        metric_name(t): (int(np.abs(np.subtract(thresholds, t)).argmin()), "all")
        for t in iou_thresholds
    }
    if coco_ap:
        sweep = slice(len(COCO_THRESHOLDS))
        columns |= {"ap" if s == "all" else f"ap_{s}": (sweep, s) for s in _SIZES}
    table = {  # name -> (C,)
        name: average[rows, :, _SIZES.index(size)].reshape(-1, average.shape[1]).mean(axis=0)
        for name, (rows, size) in columns.items()
    }
    return {
        "metrics": {name: _mean(values) for name, values in table.items()},
        "per_class": {
            category["name"]: {
                "objects": objects[category["id"]],
                **{name: _mean(values[c : c + 1]) for name, values in table.items()},
            }
            for c, category in enumerate(truth["categories"])
            if category["id"] in objects
        },
        "num_images": len(truth["images"]),
        "num_objects": objects.total(),
        "num_detections": len(detections),
        "evaluator": evaluator,
    }


def metric_name(iou_threshold: float) -> str:
    """ap25 for 0.25."""
    return f"ap{round(100 * iou_threshold, 4):g}"


def format_metrics(evaluation: dict[str, Any], per_class: bool = False) -> str:
    """The result of `evaluate_segm` as an aligned table in percent."""
    metrics = evaluation["metrics"]
    rows = [["class", "objects", *(name.upper().replace("_", " ") for name in metrics)]]
    if per_class:
        for name, values in evaluation["per_class"].items():
            rows.append([name, str(values["objects"]), *(percent(values[m]) for m in metrics)])
    total = f"mean of {len(evaluation['per_class'])} classes"
    rows.append([total, str(evaluation["num_objects"]), *map(percent, metrics.values())])
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def percent(value: float | None) -> str:
    """97.5 for 0.975, - for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _mean(values: np.ndarray) -> float | None:
    """Over the classes that occur; None if none does."""
    values = values[values >= 0]
    # Both evaluators divide by n + 2e-16; rounding gives the 1.0 that is meant.
    return round(float(values.mean()), 12) if len(values) else None


def _with_small_ids(
    truth: dict[str, Any], detections: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both with images and categories numbered from 1 in the order of their ids.

    Evaluators keep ids as 64-bit or floating-point numbers, or accept no negative ones. Equal
    scores count in the order of ids, which stays.
    """
    fields = {"images": ("file_name", "height", "width"), "categories": ("name",)}
    image, category = (
        {id_: number for number, id_ in enumerate(sorted(e["id"] for e in truth[key]), 1)}
        for key in fields
    )

    def renumbered(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**e, "image_id": image[e["image_id"]], "category_id": category[e["category_id"]]}
            for e in entries
        ]

    small = {
        key: [{"id": number[e["id"]], **{f: e[f] for f in fields[key]}} for e in truth[key]]
        for key, number in (("images", image), ("categories", category))
    }
    return small | {"annotations": renumbered(truth["annotations"])}, renumbered(detections)


def hotcoco_evaluation(truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> Any:
    """A `hotcoco.COCOeval` of masks, whose ids are those of `_with_small_ids`."""
    truth, detections = _with_small_ids(truth, detections)
    gt = hotcoco.COCO(truth)
    return hotcoco.COCOeval(gt, gt.loadRes(detections), "segm")


def _pycocotools_evaluation(
    truth: dict[str, Any], detections: Sequence[dict[str, Any]]
) -> COCOeval:
    truth, detections = _with_small_ids(truth, detections)
    # Not by loadRes, which fails on an empty list; what that adds is added here.
    annotations = [
        {**d, "id": i, "area": rle.area(d["segmentation"]), "iscrowd": 0}
        for i, d in enumerate(detections, start=1)
    ]
    gt, found = pycoco.COCO(), pycoco.COCO()
    gt.dataset, found.dataset = truth, {**truth, "annotations": annotations}
    gt.createIndex()
    found.createIndex()
    return COCOeval(gt, found, "segm")


def precision_curves(evaluation: Any, iou_thresholds: Sequence[float]) -> np.ndarray:
    """Runs an evaluation with the usual limit of 100 detections per image and class.

    Returns:
        (T, 101, C, sizes) precision at recall 0, 0.01 .. 1; -1 where there is nothing to find.
    """
    evaluation.params.iouThrs = np.array(iou_thresholds)
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[..., -1]
