"""Detections on the training images turned into annotations: for other detectors and for tools.

What is written is read as it is by pycocotools, torchvision, mmdetection, detectron2, FiftyOne and
supervision (docs/refinement.md); with polygons also by Label Studio and CVAT.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

from lib.evaluation.coco_files import check_results
from lib.evaluation.polygons import LeftOut, mask_to_polygons
from lib.proposals import rle

logger = logging.getLogger(__name__)

Segmentation = Literal["compressed", "uncompressed", "polygon"]
SEGMENTATIONS: tuple[Segmentation, ...] = get_args(Segmentation)
MIN_PART = 0.01
"""Parts and holes of a mask below this fraction of it are no part of a polygon."""


def to_coco_annotations(
    results: Sequence[dict[str, Any]],
    dataset: dict[str, Any],
    score_thresh: float = 0.3,
    segmentation: Segmentation = "compressed",
    name: str = "the detections",
    tolerance: float = 0.0,
    min_part: float = MIN_PART,
) -> dict[str, Any]:
    """A COCO json whose annotations are detections (SPEC 9).

    What the detections are restricted to (the image-level classes of each image) was decided when
    they were made. When none reaches the threshold the json is still whole, without annotations,
    and a warning names the best score there was.

    Args:
        results: COCO results on the training images.
        dataset: the training json; its images (all are listed, also those left without
            annotations) and categories are taken over, its annotations are never looked at.
        score_thresh: detections scored below this are dropped.
        segmentation: `compressed` RLE (text), `uncompressed` RLE (lists of runs, as the published
            system wrote them) or `polygon` (for annotation tools).
        name: what errors call the results, their file for example.
        tolerance, min_part: of polygons, see `mask_to_polygons`; what these leave out is said.

    Returns:
        Plain JSON values. The annotations are ordered best first (equal scores in the order of
        `results`) and numbered from 1; each has id, image_id, category_id, score, segmentation,
        area, bbox (x y width height, tight) and iscrowd 0. Area and box are those of what the
        segmentation draws; a mask without a pixel is no annotation.

    Raises:
        ValueError: results that do not belong to these images, see `check_results`.
    """
    if segmentation not in SEGMENTATIONS:
        raise ValueError(f"segmentation {segmentation!r}; take one of {', '.join(SEGMENTATIONS)}")
    checked = check_results(results, dataset, name)
    kept = sorted((r for r in checked if r["score"] >= score_thresh), key=lambda r: -r["score"])
    kept = [r for r in kept if rle.area(r["segmentation"])]
    if not kept:
        best = max((r["score"] for r in checked), default=None)
        logger.warning(
            "no pseudo label is left: %s",
            "there are no detections"
            if best is None
            else f"none of {len(checked)} detections reaches the score {score_thresh:g} "
            f"(the best has {best:.3g}); train longer or lower the threshold",
        )
    left_out = LeftOut()
    annotations = []
    for number, result in enumerate(kept, start=1):
        drawn, written = result["segmentation"], result["segmentation"]
        if segmentation == "uncompressed":
            written = rle.uncompressed(drawn)
        elif segmentation == "polygon":
            written = mask_to_polygons(rle.rle_to_mask(drawn), tolerance, min_part, left_out)
            drawn = rle.compressed(written, drawn["size"])
        annotations.append(
            {
                "id": number,
                "image_id": int(result["image_id"]),
                "category_id": int(result["category_id"]),
                "score": result["score"],
                "segmentation": written,
                "area": rle.area(drawn),
                "bbox": rle.tight_box(drawn),
                "iscrowd": 0,
            }
        )
    if left_out.parts or left_out.holes:
        logger.info(
            "polygons: %d parts dropped and %d holes filled that are smaller than %g of their mask",
            left_out.parts,
            left_out.holes,
            min_part,
        )
    return {
        "info": {"description": f"pseudo labels: detections scored {score_thresh:g} or more"},
        "images": [_with_whole_numbers(i, ("id", "height", "width")) for i in dataset["images"]],
        "annotations": annotations,
        "categories": [_with_whole_numbers(c, ("id",)) for c in dataset["categories"]],
    }


def count_table(pseudo_labels: dict[str, Any]) -> list[list[str | int]]:
    """How many instances of every class each image has, as the rows of a table.

    Returns:
        The header `image_id, file_name, <class names>, total`, then a row for every image, also
        for those without instances, in the order of the json.
    """
    categories = pseudo_labels["categories"]
    counts = Counter((a["image_id"], a["category_id"]) for a in pseudo_labels["annotations"])
    table: list[list[str | int]] = [
        ["image_id", "file_name", *(c["name"] for c in categories), "total"]
    ]
    for image in pseudo_labels["images"]:
        row = [counts[image["id"], c["id"]] for c in categories]
        table.append([image["id"], image["file_name"], *row, sum(row)])
    return table


def summarise(pseudo_labels: dict[str, Any]) -> str:
    """One line on what came out: annotations, images with and without, and the class counts."""
    annotations = pseudo_labels["annotations"]
    names = {c["id"]: c["name"] for c in pseudo_labels["categories"]}
    covered = len({a["image_id"] for a in annotations})
    counts = Counter(names[a["category_id"]] for a in annotations)
    classes = ", ".join(f"{name} {counts[name]}" for name in names.values() if counts[name])
    return f"{len(annotations)} instances on {covered} of {len(pseudo_labels['images'])} images" + (
        f" ({classes})" if classes else ""
    )


def _with_whole_numbers(entry: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The entry with these as int: JSON may write a whole number as 4.0, which not all take."""
    return {**entry, **{key: int(entry[key]) for key in keys}}
