"""COCO ground truth and results, read with every mistake named before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.evaluation import rle
from lib.files import read_json


def read_ground_truth(source: str | Path | dict[str, Any]) -> dict[str, Any]:
    """A COCO json with masks, as file or content, in one form whatever form it came in.

    Returns:
        `images` as given, `categories` in order of id, `annotations` numbered from 1 with image_id,
        category_id, segmentation (compressed RLE), area, bbox and iscrowd.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: missing fields, ids that are not listed or listed twice, segmentations that
            are missing or do not fit their image; the text names the file and the entry.
    """
    given = isinstance(source, dict)
    name = "the ground truth" if given else str(source)
    content = source if given else read_json(source)
    if not isinstance(content, dict):
        raise ValueError(
            f"{name}: found a {type(content).__name__}, expected a COCO json (images, annotations, "
            "categories); a list is a result file"
        )
    if "annotations" not in content:
        raise ValueError(
            f"{name}: it has no annotations to compare with; detections on COCO test-dev go to the "
            "evaluation server, packed by tools/make_submission.py"
        )
    _require(content, ("images", "categories"), name)
    images = _by_id(content["images"], ("id", "file_name", "height", "width"), f"{name}: image")
    categories = _by_id(content["categories"], ("id", "name"), f"{name}: category")
    annotations = []
    for number, annotation in enumerate(content["annotations"], start=1):
        where = f"{name}: annotation number {number}"
        _require(annotation, ("image_id", "category_id", "segmentation"), where)
        where = f"{name}: annotation {annotation.get('id', number)}"
        mask = _mask_of(annotation, images, categories, where)
        area = annotation.get("area")
        annotations.append(
            {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "segmentation": mask,
                # COCO sorts objects into sizes by the area its file states.
                "area": rle.area(mask) if area is None else area,
                "bbox": annotation.get("bbox") or rle.tight_box(mask),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return {
        "images": list(images.values()),
        "categories": [categories[i] for i in sorted(categories)],
        "annotations": annotations,
    }


def check_results(
    results: Sequence[dict[str, Any]],
    dataset: dict[str, Any],
    name: str = "the detections",
    need_score: bool = True,
) -> list[dict[str, Any]]:
    """COCO results brought into one form, in their order.

    Args:
        dataset: a COCO json with the images and categories that the results are of.
        name: what errors call the results, their file for example.
        need_score: False also takes annotations, which need not have a score.

    Returns:
        image_id, category_id, segmentation (compressed RLE) and score (None without one) of
        every result. A bbox is left out on purpose: with one, COCO's loadRes takes the area of
        the box for the mask's.

    Raises:
        ValueError: missing fields, ids the data set does not list, scores that are not finite
            numbers, masks that do not fit their image; the text names the entry.
    """
    if not isinstance(results, Sequence):
        raise ValueError(f"{name}: found a {type(results).__name__}, expected a list of results")
    images = {image["id"]: image for image in dataset["images"]}
    categories = {category["id"]: category for category in dataset["categories"]}
    fields = ("image_id", "category_id", "segmentation") + ("score",) * need_score
    checked = []
    for number, result in enumerate(results):
        where = f"{name}: entry {number}"
        _require(result, fields, where)
        checked.append(
            {
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "score": _score_of(result, where) if "score" in result else None,
                "segmentation": _mask_of(result, images, categories, where),
            }
        )
    return checked


def by_image(
    content: Any, dataset: dict[str, Any], name: str, score_thresh: float | None = None
) -> dict[int, list[dict[str, Any]]]:
    """What a result file or annotation file holds of every image, best first, crowds left out.

    Args:
        content: a list of COCO results, or a COCO json with annotations (with or without scores).
        dataset, name: as for `check_results`.
        score_thresh: leaves out what has a lower score.

    Returns:
        Entries as from `check_results`, by image id; images without any are not listed.

    Raises:
        ValueError: as `check_results`.
    """
    listed = content.get("annotations", []) if isinstance(content, dict) else content
    entries: dict[int, list[dict[str, Any]]] = {}
    checked = check_results(listed, dataset, name, need_score=False)
    for given, entry in zip(listed, checked, strict=True):
        low = None not in (score_thresh, entry["score"]) and entry["score"] < score_thresh
        if not low and not given.get("iscrowd"):
            entries.setdefault(entry["image_id"], []).append(entry)
    for of_image in entries.values():
        of_image.sort(key=lambda entry: -(entry["score"] or 0.0))
    return entries


def _require(entry: Any, fields: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: found a {type(entry).__name__}, expected named fields")
    missing = [field for field in fields if field not in entry]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing")


def _by_id(entries: Sequence[Any], fields: Sequence[str], what: str) -> dict[int, dict[str, Any]]:
    listed: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        _require(entry, fields, f"{what} number {number}")
        if entry["id"] in listed:
            raise ValueError(f"{what} id {entry['id']} is listed twice")
        listed[entry["id"]] = entry
    return listed


def _mask_of(
    entry: dict[str, Any],
    images: dict[int, dict[str, Any]],
    categories: dict[int, dict[str, Any]],
    where: str,
) -> dict[str, Any]:
    image = images.get(entry["image_id"])
    if image is None:
        raise ValueError(
            f"{where} is of image {entry['image_id']}, which the data set does not list; "
            "do the files belong to the same data set and split?"
        )
    if entry["category_id"] not in categories:
        known = sorted(categories)
        shown = ", ".join(str(i) for i in known[:10]) + (", .." if len(known) > 10 else "")
        raise ValueError(f"{where} is of category {entry['category_id']}, the data set has {shown}")
    try:
        return rle.compressed(entry["segmentation"], (image["height"], image["width"]))
    except ValueError as error:
        raise ValueError(f"{where} ({image['file_name']}): {error}") from None


def _score_of(entry: dict[str, Any], where: str) -> float:
    score = entry["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"{where}: score is {score!r}, expected a finite number")
    return float(score)
