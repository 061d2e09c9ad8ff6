"""How well single images and classes come off: AP of an image, hits and misses, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np

from lib.evaluation.coco_eval import MAX_DETECTIONS, with_small_ids

RECALLS = 101
"""Points of a precision-recall curve: recall 0, 0.01 .. 1."""


@dataclass(frozen=True)
class ImageQuality:
    """How the detections on one image compare with its objects."""

    ap: float | None
    """In [0, 1], mean over the classes that the image has; None for an image without objects."""
    objects: int
    """Crowds are not counted."""
    found: int
    """Objects that a detection hits."""


@dataclass(frozen=True)
class Comparison:
    """Detections against ground truth at one IoU threshold."""

    images: dict[int, ImageQuality]
    """By image id, for every image of the ground truth."""
    is_hit: list[bool | None]
    """Of every detection; None where it neither counts as hit nor as miss (on a crowd)."""
    is_found: list[bool | None]
    """Of every annotation of the ground truth; None for crowds."""
    precision: dict[int, np.ndarray]
    """(101,) precision at recall 0, 0.01 .. 1 by category id, for classes that occur."""


def compare(
    truth: dict[str, Any], detections: Sequence[dict[str, Any]], iou_thresh: float = 0.5
) -> Comparison:
    """Matches detections with objects as the COCO evaluation does, and keeps what matched.

    Args:
        truth: as from `coco_files.read_ground_truth`.
        detections: as from `coco_files.check_results`, of that ground truth; may be none.
        iou_thresh: from this mask IoU on a detection hits an object.
    """
    is_found: list[bool | None] = [None if a["iscrowd"] else False for a in truth["annotations"]]
    is_hit: list[bool | None] = [None] * len(detections)
    scores: dict[int, list[float]] = {image["id"]: [] for image in truth["images"]}
    precision = {}
    image_ids = sorted(scores)
    occurring = {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
    if detections:
        small, numbered = with_small_ids(truth, detections)
        gt = hotcoco.COCO(small)
        evaluation = hotcoco.COCOeval(gt, gt.loadRes(numbered), "segm")
        evaluation.params.iouThrs = np.array([iou_thresh])
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng = [[0.0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        for group in evaluation.eval_imgs:  # one for every image and class that has anything
            if group is None:
                continue
            _note_matches(group, is_hit, is_found)
            if (count := sum(group["gtInDenominator"])) > 0:
                image_id = image_ids[group["image_id"] - 1]
                scores[image_id].append(_average_precision(group, count))
        evaluation.accumulate()
        curves = np.asarray(evaluation.eval["precision"])[0, :, :, 0, 0]  # (101, C)
        ids = [category["id"] for category in truth["categories"]]
        precision = {id_: curves[:, c].clip(min=0) for c, id_ in enumerate(ids) if id_ in occurring}
    return Comparison(
        images=_qualities(truth, scores, is_found),
        is_hit=is_hit,
        is_found=is_found,
        precision=precision or {id_: np.zeros(RECALLS) for id_ in sorted(occurring)},
    )


def _note_matches(
    group: dict[str, Any], is_hit: list[bool | None], is_found: list[bool | None]
) -> None:
    """Both kinds of ids count from 1 in the order of the entries."""
    matched, ignored = group["dtMatched"][0], group["dtIgnore"][0]
    for id_, hit, ignore in zip(group["dtIds"], matched, ignored, strict=True):
        is_hit[id_ - 1] = None if ignore else hit
    for id_, found, counts in zip(
        group["gtIds"], group["gtMatched"][0], group["gtInDenominator"], strict=True
    ):
        if counts:
            is_found[id_ - 1] = found


def _average_precision(group: dict[str, Any], num_objects: int) -> float:
    """COCO's 101-point AP of one image and class."""
    counts = ~np.array(group["dtIgnore"][0], bool)
    hit = np.array(group["dtMatched"][0], bool)[counts]
    if not len(hit):
        return 0.0
    order = np.argsort(-np.array(group["dtScores"])[counts], kind="stable")
    found = np.cumsum(hit[order])
    best = np.maximum.accumulate((found / np.arange(1, len(hit) + 1))[::-1])[::-1]
    place = np.searchsorted(found / num_objects, np.linspace(0, 1, RECALLS), side="left")
    return float(np.append(best, 0.0)[place].mean())


def _qualities(
    truth: dict[str, Any], scores: dict[int, list[float]], is_found: list[bool | None]
) -> dict[int, ImageQuality]:
    classes: dict[int, set[int]] = {image["id"]: set() for image in truth["images"]}
    objects, found = dict.fromkeys(classes, 0), dict.fromkeys(classes, 0)
    for annotation, hit in zip(truth["annotations"], is_found, strict=True):
        if hit is not None:
            classes[annotation["image_id"]].add(annotation["category_id"])
            objects[annotation["image_id"]] += 1
            found[annotation["image_id"]] += hit
    return {
        id_: ImageQuality(
            # A class without any detection may be missing among the groups: its AP is 0.
            ap=sum(scores[id_]) / len(classes[id_]) if classes[id_] else None,
            objects=objects[id_],
            found=found[id_],
        )
        for id_ in classes
    }
