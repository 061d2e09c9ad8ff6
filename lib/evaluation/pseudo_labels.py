"""Detections on the training images as COCO annotations, for other detectors and for tools.

pycocotools, torchvision, mmdetection, detectron2, FiftyOne and supervision read them as they are
(docs/refinement.md); with polygons Label Studio and CVAT do too.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

from lib.evaluation.coco_files import check_results
from lib.evaluation.polygons import mask_to_polygons
from lib.proposals import rle

logger = logging.getLogger(__name__)

Segmentation = Literal["compressed", "uncompressed", "polygon"]
SEGMENTATIONS: tuple[Segmentation, ...] = get_args(Segmentation)
MIN_PART = 0.01
"""Parts and holes below this fraction of their mask are left out of a polygon."""


def to_coco_annotations(
    results: Sequence[dict[str, Any]],
    dataset: dict[str, Any],
    score_thresh: float = 0.3,
    segmentation: Segmentation = "compressed",
    name: str = "the detections",
    tolerance: float = 0.0,
    min_part: float = MIN_PART,
) -> dict[str, Any]:
    """A COCO json whose annotations are detections (docs/specification.md#pseudo-labels).

    Logs a warning with the best score if none reaches the threshold; the json then has no
    annotations.

    Args:
        results: COCO results on the training images, of their image-level classes.
        dataset: the training json, as `read_coco` gives it. All its images and categories are
            copied, its annotations are never looked at.
        score_thresh: detections scored below this are dropped.
        segmentation: `compressed` RLE (text), `uncompressed` RLE (lists of runs, as the published
            system wrote them) or `polygon` (for annotation tools).
        name: what errors call the results, their file for example.
        tolerance, min_part: of polygons, see `mask_to_polygons`; what they leave out is logged.

    Returns:
        Plain JSON values. The annotations are ordered best first (equal scores in the order of
        `results`) and numbered from 1; each has id, image_id, category_id, score, segmentation,
        area, bbox (x y width height, tight) and iscrowd 0. Area and box are those of the drawn
        segmentation; masks without a pixel are dropped.

    Raises:
        ValueError: results that do not belong to these images, see `check_results`.
    """
    if segmentation not in SEGMENTATIONS:
        raise ValueError(f"segmentation {segmentation!r}; take one of {', '.join(SEGMENTATIONS)}")
    checked = check_results(results, dataset, name)
    kept = [r for r in checked if r["score"] >= score_thresh and rle.area(r["segmentation"])]
    kept.sort(key=lambda r: -r["score"])
    if not checked:
        logger.warning("no pseudo label is left: there are no detections")
    elif not kept:
        logger.warning(
            "no pseudo label is left: none of %d detections reaches the score %g (the best has "
            "%.3g); train longer or lower the threshold",
            len(checked),
            score_thresh,
            max(r["score"] for r in checked),
        )
    left_out: Counter[str] = Counter()
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
                **result,
                "segmentation": written,
                "area": rle.area(drawn),
                "bbox": rle.tight_box(drawn),
                "iscrowd": 0,
            }
        )
    if left_out:
        logger.info(
            "polygons: %d parts dropped and %d holes filled that are smaller than %g of their mask",
            left_out["parts"],
            left_out["holes"],
            min_part,
        )
    return {
        "info": {"description": f"pseudo labels: detections scored {score_thresh:g} or more"},
        "images": dataset["images"],
        "annotations": annotations,
        "categories": dataset["categories"],
    }


def count_table(pseudo_labels: dict[str, Any]) -> list[list[str | int]]:
    """Instances per image and class, as rows of a table.

    Returns:
        The header `image_id, file_name, <class names>, total`, then a row for every image, in the
        order of the json.
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
    """One line: the number of instances, images that have some, and instances per class."""
    annotations = pseudo_labels["annotations"]
    names = {c["id"]: c["name"] for c in pseudo_labels["categories"]}
    covered = len({a["image_id"] for a in annotations})
    counts = Counter(names[a["category_id"]] for a in annotations)
    classes = ", ".join(f"{name} {counts[name]}" for name in names.values() if counts[name])
    return f"{len(annotations)} instances on {covered} of {len(pseudo_labels['images'])} images" + (
        f" ({classes})" if classes else ""
    )
