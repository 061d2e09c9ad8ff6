"""Detections on the training images turned into annotations for a second-stage detector (CIM+)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from lib.evaluation import rle
from lib.evaluation.coco_files import check_results

logger = logging.getLogger(__name__)

Segmentation = Literal["compressed", "uncompressed"]


def to_coco_annotations(
    results: Sequence[dict[str, Any]],
    dataset: dict[str, Any],
    score_thresh: float = 0.3,
    segmentation: Segmentation = "compressed",
    name: str = "the detections",
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
        segmentation: `compressed` RLE (text; read by pycocotools, torchvision, mmdetection,
            detectron2) or `uncompressed` (lists of runs, as the published system wrote them).
        name: what errors call the results, their file for example.

    Returns:
        Plain JSON values. The annotations are ordered best first (equal scores in the order of
        `results`) and numbered from 1; each has id, image_id, category_id, score, segmentation,
        area, bbox (x y width height, tight) and iscrowd 0.

    Raises:
        ValueError: results that do not belong to these images, see `check_results`.
    """
    if segmentation not in ("compressed", "uncompressed"):
        raise ValueError(f"segmentation {segmentation!r}; take compressed or uncompressed")
    checked = check_results(results, dataset, name)
    kept = sorted((r for r in checked if r["score"] >= score_thresh), key=lambda r: -r["score"])
    if not kept:
        best = max((r["score"] for r in checked), default=None)
        logger.warning(
            "no pseudo label is left: %s",
            "there are no detections"
            if best is None
            else f"none of {len(checked)} detections reaches the score {score_thresh:g} "
            f"(the best has {best:.3g}); train longer or lower the threshold",
        )
    annotations = [
        {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "score": result["score"],
            "segmentation": rle.uncompressed(result["segmentation"])
            if segmentation == "uncompressed"
            else result["segmentation"],
            "area": rle.area(result["segmentation"]),
            "bbox": rle.tight_box(result["segmentation"]),
            "iscrowd": 0,
        }
        for number, result in enumerate(kept, start=1)
    ]
    return {
        "info": {"description": f"pseudo labels: detections scored {score_thresh:g} or more"},
        "images": dataset["images"],
        "annotations": annotations,
        "categories": dataset["categories"],
    }


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
