"""Quality of single images and classes: AP of an image, hits and misses, precision curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.evaluation.coco_eval import hotcoco_evaluation, precision_curves

RECALLS = 101
"""Points of a precision-recall curve: recall 0, 0.01 .. 1."""


@dataclass(frozen=True)
class ImageQuality:
    """Detections on one image against its objects."""

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
    """Of every detection; None on a crowd, where it is neither hit nor miss."""
    is_found: list[bool | None]
    """Of every annotation of the ground truth; None for crowds."""
    precision: dict[int, np.ndarray]
    """(101,) precision at recall 0, 0.01 .. 1 by category id, for classes that occur."""


def compare(
    truth: dict[str, Any], detections: Sequence[dict[str, Any]], iou_thresh: float = 0.5
) -> Comparison:
    """Matches detections with objects as the COCO evaluation does, and keeps the matches.

    Args:
        truth: from `coco_files.read_ground_truth`.
        detections: from `coco_files.check_results`, of that ground truth; may be empty.
        iou_thresh: mask IoU from which a detection hits an object.
    """
    is_found: list[bool | None] = [None if a["iscrowd"] else False for a in truth["annotations"]]
    is_hit: list[bool | None] = [None] * len(detections)
    aps: dict[int, dict[int, float]] = {image["id"]: {} for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            aps[annotation["image_id"]][annotation["category_id"]] = 0.0
    image_ids, category_ids = sorted(aps), [category["id"] for category in truth["categories"]]
    precision = {id_: np.zeros(RECALLS) for id_ in sorted({c for of in aps.values() for c in of})}
    if detections:
        evaluation = hotcoco_evaluation(truth, detections)
        evaluation.params.areaRng = [[0.0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        curves = precision_curves(evaluation, [iou_thresh])[0, :, :, 0]  # (101, C)
        precision = {id_: curves[:, category_ids.index(id_)].clip(min=0) for id_ in precision}
        for group in evaluation.eval_imgs:  # one for every image and class that has anything
            if group is None:
                continue
            _note_matches(group, is_hit, is_found)
            if (count := sum(group["gtInDenominator"])) > 0:
                of_image = aps[image_ids[group["image_id"] - 1]]
                of_image[category_ids[group["category_id"] - 1]] = _average_precision(group, count)
    image_of = [annotation["image_id"] for annotation in truth["annotations"]]
    pairs = list(zip(image_of, is_found, strict=True))
    objects = Counter(id_ for id_, hit in pairs if hit is not None)
    found = Counter(id_ for id_, hit in pairs if hit)
    images = {
        id_: ImageQuality(sum(of.values()) / len(of) if of else None, objects[id_], found[id_])
        for id_, of in aps.items()
    }
    return Comparison(images, is_hit, is_found, precision)


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
