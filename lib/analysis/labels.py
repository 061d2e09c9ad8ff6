"""Recall and precision of pseudo labels beside the true masks, by class and number of objects."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lib.analysis.instance_quality import GOOD_IOU, TIGHT_IOU
from lib.evaluation.per_image import compare

_MANY = 3
"""Images with this many objects or more are one group."""


def label_quality(
    labels: Sequence[dict[str, Any]], truth: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Compares pseudo labels with objects, one to one, as the COCO evaluation matches them.

    Args:
        labels: from `pseudo_labels.select`, of the images of `truth`; may be empty.
        truth: from `coco_files.read_ground_truth`; crowds count neither as objects nor as missed.

    Returns:
        By group: `labels` and `objects` (numbers); `recall` and `precision` in [0, 1], each with
        the IoU that a match needs behind it, left out where there is no object or no label. Groups
        are `all`, images by their number of objects, and classes.
    """
    objects = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    counts = Counter(annotation["image_id"] for annotation in objects)
    names = {category["id"]: category["name"] for category in truth["categories"]}

    def groups(entry: dict[str, Any]) -> tuple[str, ...]:
        count = min(counts[entry["image_id"]], _MANY)
        many = f"{count}{' or more' * (count == _MANY)} object{'s' * (count != 1)}"
        return "all", f"images of {many}", f"class {names[entry['category_id']]}"

    shares: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for iou in (GOOD_IOU, TIGHT_IOU):
        comparison = compare(truth, labels, iou)
        for measure, entries, hits in (
            ("recall", truth["annotations"], comparison.is_found),
            ("precision", labels, comparison.is_hit),
        ):
            for entry, hit in zip(entries, hits, strict=True):
                if hit is not None:
                    for group in groups(entry):
                        shares[group][f"{measure} {iou:g}"].append(hit)
    found = {}
    for group in sorted(shares):  # `all` first
        values = shares[group]
        found[group] = {
            "objects": len(values[f"recall {GOOD_IOU:g}"]),
            "labels": len(values[f"precision {GOOD_IOU:g}"]),
            **{measure: fmean(hits) for measure, hits in values.items() if hits},
        }
    return found
