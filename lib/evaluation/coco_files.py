"""Reads COCO ground truth and results, and names every mistake before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.data.coco import lookup, read_coco, score_of
from lib.proposals import rle


def read_ground_truth(
    source: str | Path | dict[str, Any], need_masks: bool = True
) -> dict[str, Any]:
    """A COCO json with masks, see `lib.data.coco.read_coco`.

    Categories are in the order of their ids. Without `need_masks`, no annotations are given where
    none has a usable mask.
    """
    content = read_coco(source, masks=True, need_masks=need_masks, annotations=need_masks)
    content["categories"].sort(key=lambda category: category["id"])
    return content


def check_results(
    results: Sequence[dict[str, Any]],
    dataset: dict[str, Any],
    name: str = "the detections",
    need_score: bool = True,
) -> list[dict[str, Any]]:
    """COCO results in one form, in their order.

    Args:
        dataset: the data set of the results, as `read_coco` gives it.
        name: what errors call the results, their file for example.
        need_score: False also accepts annotations, which need not have a score.

    Returns:
        image_id, category_id, score (None without one) and segmentation (compressed RLE) of every
        result. A bbox is left out on purpose: with one, COCO's loadRes takes the area of the box
        for the mask's.

    Raises:
        ValueError: missing fields, ids that the data set does not list, scores that are not finite
            numbers, masks that do not fit their image; the text names the entry.
    """
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise ValueError(f"{name}: found a {type(results).__name__}, expected a list of results")
    find_image, find_category = lookup(dataset["images"]), lookup(dataset["categories"])
    fields = ("image_id", "category_id", "segmentation") + ("score",) * need_score
    checked = []
    for number, result in enumerate(results):
        where = f"{name}: entry {number}"
        if not isinstance(result, dict):
            raise ValueError(f"{where}: found a {type(result).__name__}, expected named fields")
        missing = [field for field in fields if field not in result]
        if missing:
            raise ValueError(f"{where}: {', '.join(missing)} missing")
        image, category = find_image(result["image_id"]), find_category(result["category_id"])
        if image is None:
            raise ValueError(
                f"{where} is of image {result['image_id']!s:.80}, which the data set does not "
                "list; do the files belong to the same data set and split?"
            )
        if category is None:
            known = sorted(c["id"] for c in dataset["categories"])
            shown = ", ".join(map(str, known[:10])) + (", .." if len(known) > 10 else "")
            raise ValueError(
                f"{where} is of category {result['category_id']!s:.80}, the data set has {shown}"
            )
        scored = need_score or result.get("score") is not None
        score = score_of(result, where) if scored else None
        try:
            mask = rle.compressed(result["segmentation"], (image["height"], image["width"]))
        except ValueError as error:
            raise ValueError(f"{where} ({image['file_name']}): {error}") from None
        checked.append(
            {
                "image_id": image["id"],
                "category_id": category["id"],
                "score": score,
                "segmentation": mask,
            }
        )
    return checked


def read_layer(content: Any, dataset: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Checks a list of results, or a COCO json with annotations, as `check_results` does.

    Leaves out crowds, and annotations without a usable mask.
    """
    if isinstance(content, dict):
        given = read_coco(content, masks=True, name=name)["annotations"]
        content = [annotation for annotation in given if not annotation["iscrowd"]]
    return check_results(content, dataset, name, need_score=False)


def by_image(
    content: Any, dataset: dict[str, Any], name: str, score_thresh: float | None = None
) -> dict[int, list[dict[str, Any]]]:
    """Results or annotations of every image, best first, without crowds.

    Args:
        content: a list of COCO results, or a COCO json with annotations (with or without scores).
        dataset, name: as for `check_results`.
        score_thresh: leaves out lower scores.

    Returns:
        Entries as from `check_results`, by image id; images without any are not listed.

    Raises:
        ValueError: as `check_results`.
    """
    return group_by_image(read_layer(content, dataset, name), score_thresh)


def group_by_image(
    entries: Sequence[dict[str, Any]], score_thresh: float | None = None
) -> dict[int, list[dict[str, Any]]]:
    """Entries by image id, best first; without scores, in their order."""
    grouped: dict[int, list[dict[str, Any]]] = {}
    for entry in sorted(entries, key=lambda entry: -(entry["score"] or 0.0)):
        if None in (score_thresh, entry["score"]) or entry["score"] >= score_thresh:
            grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped
