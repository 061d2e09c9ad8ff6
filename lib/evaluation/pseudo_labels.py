"""Detections on the training images as COCO annotations, for other detectors and for tools.

pycocotools, torchvision, mmdetection, detectron2, FiftyOne and supervision read them as they are
(docs/refinement.md); with polygons Label Studio and CVAT do too.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from lib.config import PseudoLabelConfig
from lib.evaluation.coco_files import check_results, group_by_image
from lib.evaluation.polygons import mask_to_polygons
from lib.proposals import rle
from lib.structures import Regions

logger = logging.getLogger(__name__)

Segmentation = Literal["compressed", "uncompressed", "polygon"]
SEGMENTATIONS: tuple[Segmentation, ...] = get_args(Segmentation)
MIN_PART = 0.01
"""Parts and holes below this fraction of their mask are left out of a polygon."""
CONTAINED = 0.85
"""From this fraction of a mask on, it counts as lying in another."""
PUBLISHED = PseudoLabelConfig()
"""All that score 0.3 or more."""


def select(
    results: Sequence[dict[str, Any]], dataset: dict[str, Any], how: PseudoLabelConfig
) -> list[dict[str, Any]]:
    """Chooses the detections that become pseudo labels.

    `score` takes all that reach a score. `adaptive` relies on the image-level labels: each tells
    that there is an object. So the best detection of every image and label stays, whatever its
    score, and so does every other one with at least `relative_thresh` of that score, unless one
    with a higher score lies in it: it then joins an object and something else. What lies in a
    better one stays: more often that is one of several objects than a part of one
    (docs/refinement.md).

    Args:
        results: from `check_results`.
        dataset: as `read_coco` gives it; of its annotations only image and category are read, and
            only for `adaptive`.

    Returns:
        Those results, in their order.

    Raises:
        ValueError: `adaptive`, and the data set has no image-level labels.
    """
    if how.select == "score":
        return [result for result in results if result["score"] >= how.score_thresh]
    labels = {(a["image_id"], a["category_id"]) for a in dataset["annotations"] if not a["iscrowd"]}
    if not labels:
        raise ValueError(
            "the data set has no image-level labels, which `adaptive` keeps a detection for; take "
            "--select score"
        )
    groups: dict[tuple[int, int], list[int]] = {}
    for number in sorted(range(len(results)), key=lambda n: -results[n]["score"]):
        result = results[number]
        pair = result["image_id"], result["category_id"]
        if pair in labels and rle.area(result["segmentation"]):
            groups.setdefault(pair, []).append(number)
    chosen: list[int] = []
    for group in groups.values():
        best = results[group[0]]["score"]
        high = [n for n in group if results[n]["score"] >= how.relative_thresh * best > 0]
        inside = rle.containment([results[n]["segmentation"] for n in high])  # (N, N)
        kept: list[int] = []
        for i in range(len(high)):
            if not (inside[i, kept] >= CONTAINED).any():
                kept.append(i)
        chosen += [high[i] for i in kept] or group[:1]
    return [results[number] for number in sorted(chosen)]


def to_coco_annotations(
    results: Sequence[dict[str, Any]],
    dataset: dict[str, Any],
    how: PseudoLabelConfig = PUBLISHED,
    segmentation: Segmentation = "compressed",
    name: str = "the detections",
    tolerance: float = 0.0,
    min_part: float = MIN_PART,
    regions_of: Callable[[str], Regions] | None = None,
) -> dict[str, Any]:
    """A COCO json whose annotations are detections (docs/specification.md#pseudo-labels).

    Logs a warning with the best score if none is selected; the json then has no annotations.

    Args:
        results: COCO results on the training images, of their image-level classes.
        dataset: the training json, as `read_coco` gives it. All its images and categories are
            copied; of its annotations at most image and category are looked at, see `select`.
        how: see `select`.
        segmentation: `compressed` RLE (text), `uncompressed` RLE (lists of runs, as the published
            system wrote them) or `polygon` (for annotation tools).
        name: what errors call the results, their file for example.
        tolerance, min_part: of polygons, see `mask_to_polygons`; what they leave out is logged.
        regions_of: an image's proposals by its file name; read where `how` has a `snap_iou`.

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
    kept = [r for r in select(checked, dataset, how) if rle.area(r["segmentation"])]
    kept.sort(key=lambda r: -r["score"])
    if how.snap_iou is not None:
        _snap(kept, dataset, regions_of, how.snap_iou)
    if not checked:
        logger.warning("no pseudo label is left: there are no detections")
    elif not kept:
        asked = "is of a label of its image"
        if how.select == "score":
            asked = f"reaches the score {how.score_thresh:g}"
        logger.warning(
            "no pseudo label is left: none of %d detections %s (the best has %.3g); train longer "
            "or lower the threshold",
            len(checked),
            asked,
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
        "info": {"description": "pseudo labels", "selection": how.model_dump(mode="json")},
        "images": dataset["images"],
        "annotations": annotations,
        "categories": dataset["categories"],
    }


def _snap(
    results: list[dict[str, Any]],
    dataset: dict[str, Any],
    regions_of: Callable[[str], Regions],
    min_iou: float,
) -> None:
    """Gives results the proposals' masks where these fit, see `rle.snap`; says how many do."""
    names = {image["id"]: image["file_name"] for image in dataset["images"]}
    changed = 0
    for image_id, of_image in group_by_image(results).items():
        masks = [result["segmentation"] for result in of_image]
        masks = rle.snap(masks, regions_of(names[image_id]), min_iou)
        for result, mask in zip(of_image, masks, strict=True):
            changed += mask is not result["segmentation"]
            result["segmentation"] = mask
    logger.info(
        "%d of %d masks are replaced by the proposal that overlaps them most",
        changed,
        len(results),
    )


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
