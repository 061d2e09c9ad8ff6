"""Mask AP of detections against COCO ground truth.

`hotcoco` computes it (the same numbers as pycocotools, many times faster); pycocotools itself can
be chosen, and is the oracle in the tests. Neither says much about wrong input (one crashes on an
empty list, both take NaN scores silently), so everything is checked first, see coco_files.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
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
MAX_DETECTIONS = 100
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
    and the mean goes over the classes that occur in the ground truth.

    Args:
        ground_truth: a COCO json with masks, as file or content.
        results: COCO results (image_id, category_id, score, segmentation), as file or content.
            With none, every AP is 0 and a warning says so.
        iou_thresholds: each gives one AP, named ap25 for 0.25 (a fraction of a percent as ap12.5).
        coco_ap: also give `ap` (mean over IoU 0.5, 0.55 .. 0.95), with `ap_small`, `ap_medium` and
            `ap_large` by the area of the object.
        evaluator: `hotcoco` or `pycocotools`.

    Returns:
        `metrics` {name: AP in [0, 1]}, `per_class` {class name: {name: AP, "objects": count}} for
        the classes that occur, `num_images`, `num_objects`, `num_detections`, `evaluator`. The AP
        of a size that no object has is None.

    Raises:
        ValueError: ground truth without masks, ids the ground truth does not know, masks of
            another size than their image, scores that are not finite numbers; the text names the
            entry.
    """
    if evaluator not in EVALUATORS:
        raise ValueError(f"evaluator {evaluator!r} is not known; take one of {EVALUATORS}")
    truth = read_ground_truth(ground_truth)
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    if not objects:
        name = "the ground truth" if isinstance(ground_truth, dict) else ground_truth
        raise ValueError(f"{name}: no annotated object; there is nothing to evaluate against")
    if isinstance(results, str | Path):
        detections = check_results(read_json(results), truth, name=str(results))
    else:
        detections = check_results(results, truth)
    if not detections:
        logger.warning("there are no detections: every AP is 0")
    wanted = COCO_THRESHOLDS if coco_ap else ()
    extra = [t for t in iou_thresholds if not any(math.isclose(t, w) for w in wanted)]
    thresholds = sorted({*wanted, *extra})
    run = _run_hotcoco if evaluator == "hotcoco" else _run_pycocotools
    precision = run(*with_small_ids(truth, detections), thresholds)
    average = _mean_over_recall(precision)  # (T, C, sizes)

    columns = {
        metric_name(t): ([int(np.argmin(np.abs(np.array(thresholds) - t)))], "all")
        for t in iou_thresholds
    }
    if coco_ap:
        sweep = [thresholds.index(t) for t in COCO_THRESHOLDS]
        columns["ap"] = (sweep, "all")
        columns |= {f"ap_{size}": (sweep, size) for size in _SIZES[1:]}
    table = {  # name -> (C,) AP of every class, NaN where it does not occur
        name: average[rows, :, _SIZES.index(size)].mean(axis=0)
        for name, (rows, size) in columns.items()
    }
    return {
        "metrics": {name: _mean(values) for name, values in table.items()},
        "per_class": _per_class(truth["categories"], objects, table),
        "num_images": len(truth["images"]),
        "num_objects": len(objects),
        "num_detections": len(detections),
        "evaluator": evaluator,
    }


def metric_name(iou_threshold: float) -> str:
    """ap25 for 0.25."""
    return f"ap{round(100 * iou_threshold, 4):g}"


def format_metrics(evaluation: dict[str, Any], per_class: bool = False) -> str:
    """What `evaluate_segm` gives, as an aligned table in percent; with a row per class if asked."""
    metrics = evaluation["metrics"]
    rows = [["class", "objects", *(name.upper().replace("_", " ") for name in metrics)]]
    if per_class:
        for name, values in evaluation["per_class"].items():
            rows.append([name, str(values["objects"]), *(percent(values[m]) for m in metrics)])
    total = f"mean of {len(evaluation['per_class'])} classes"
    rows.append([total, str(evaluation["num_objects"]), *(percent(v) for v in metrics.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def percent(value: float | None) -> str:
    """97.5 for 0.975, - for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _mean(values: np.ndarray) -> float | None:
    occurs = ~np.isnan(values)
    # Both evaluators divide by n + 2e-16; rounding gives the 1.0 that is meant.
    return round(float(values[occurs].mean()), 12) if occurs.any() else None


def _per_class(
    categories: list[dict[str, Any]], objects: list[dict[str, Any]], table: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    counts = {c["id"]: 0 for c in categories}
    for annotation in objects:
        counts[annotation["category_id"]] += 1
    result = {}
    for i, category in enumerate(categories):
        if counts[category["id"]]:
            values = {name: _mean(row[i : i + 1]) for name, row in table.items()}
            result[category["name"]] = {"objects": counts[category["id"]], **values}
    return result


def _mean_over_recall(precision: np.ndarray) -> np.ndarray:
    """(T, 101, C, sizes, limits) of the evaluators, -1 where nothing is to be found ->
    (T, C, sizes) AP at the highest limit, NaN there."""
    average = precision[..., -1].mean(axis=1)
    return np.where(average < 0, np.nan, average)


def with_small_ids(
    truth: dict[str, Any], detections: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same with images and categories numbered from 1 in the order of their ids.

    Evaluators keep ids as 64-bit or floating-point numbers, or know no negative ones. Equal scores
    count in the order of ids, which stays.
    """
    numbers = {
        key: {id_: number for number, id_ in enumerate(sorted(e["id"] for e in truth[key]), 1)}
        for key in ("images", "categories")
    }

    def renumbered(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        image, category = numbers["images"], numbers["categories"]
        return [
            {
                **entry,
                "image_id": image[entry["image_id"]],
                "category_id": category[entry["category_id"]],
            }
            for entry in entries
        ]

    fields = {"images": ("file_name", "height", "width"), "categories": ("name",)}
    small = {
        key: [
            {"id": numbers[key][entry["id"]], **{field: entry[field] for field in fields[key]}}
            for entry in truth[key]
        ]
        for key in numbers
    }
    return small | {"annotations": renumbered(truth["annotations"])}, renumbered(detections)


def _run_hotcoco(
    truth: dict[str, Any], detections: list[dict[str, Any]], thresholds: list[float]
) -> np.ndarray:
    gt = hotcoco.COCO(truth)
    return _accumulate(hotcoco.COCOeval(gt, gt.loadRes(detections), "segm"), thresholds)


def _run_pycocotools(
    truth: dict[str, Any], detections: list[dict[str, Any]], thresholds: list[float]
) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        gt, found = pycoco.COCO(), pycoco.COCO()
        gt.dataset = truth
        gt.createIndex()
        # Not by loadRes, which fails on an empty list; what that adds is added here.
        numbered = [
            {**d, "id": i, "area": rle.area(d["segmentation"]), "iscrowd": 0}
            for i, d in enumerate(detections, start=1)
        ]
        found.dataset = {**truth, "annotations": numbered}
        found.createIndex()
        return _accumulate(COCOeval(gt, found, "segm"), thresholds)


def _accumulate(evaluation: Any, thresholds: list[float]) -> np.ndarray:
    evaluation.params.iouThrs = np.array(thresholds)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])
