"""Mask AP of a data set as large as VOC's val split: encoding its detections, and scoring them."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.report import Conditions, Row
from benchmarks.timing import time_together
from lib.evaluation.coco_eval import evaluate_segm
from lib.evaluation.detections import to_coco_results
from lib.proposals import rle
from lib.structures import Detections, Regions

logger = logging.getLogger(__name__)

NUM_IMAGES, SIZE = 1449, (375, 500)
PER_IMAGE = 100
NUM_CLASSES = 20
OBJECTS = 3
"""Of an image, of up to two classes."""
NUM_REGIONS, DIFFERENT = 300, 20
"""Of an image; and images of different regions, which all others repeat."""


def run(conditions: Conditions) -> Iterator[Row]:
    """The goals are those of two cores; files are read and checked as tools/evaluate.py does."""
    num_images = 6 if conditions.quick else NUM_IMAGES
    rng = np.random.default_rng(conditions.seed)
    logger.info("evaluation: %d images with %d detections each", num_images, PER_IMAGE)
    scenes = [_draw_regions(rng) for _ in range(min(num_images, DIFFERENT))]
    yield from _encoding(scenes[0], conditions)

    truth, results = _data_set(scenes, num_images, rng)
    with tempfile.TemporaryDirectory() as folder:
        truth_file, results_file = Path(folder, "truth.json"), Path(folder, "results.json")
        truth_file.write_text(json.dumps(truth))
        results_file.write_text(json.dumps(results))
        taken, metrics = {}, {}
        for evaluator in ("hotcoco", "pycocotools"):
            logger.info("evaluation: by %s", evaluator)
            start = time.perf_counter()
            metrics[evaluator] = evaluate_segm(
                truth_file, results_file, coco_ap=True, evaluator=evaluator
            )["metrics"]
            taken[evaluator] = time.perf_counter() - start
    case = f"{num_images} images, {len(results)} detections"
    yield Row(f"{case}: AP by hotcoco", taken["hotcoco"], "s", at_most=60)
    yield Row(f"{case}: AP by pycocotools", taken["pycocotools"], "s")
    yield Row(
        f"{case}: speed-up over pycocotools",
        taken["pycocotools"] / taken["hotcoco"],
        "x",
        at_least=None if conditions.quick else 1,
        note="reading and checking both files included, VOC's and COCO's thresholds in one",
    )
    yield Row(
        "largest difference of an AP between them",
        _largest_difference(metrics["hotcoco"], metrics["pycocotools"]),
        "",
        at_most=1e-6,
    )
    yield Row("AP at IoU 0.5 of this data set", metrics["hotcoco"]["ap50"], "")


def _largest_difference(one: dict[str, float | None], other: dict[str, float | None]) -> float:
    """Of APs by name; None, of a size that no object has, is like None alone."""
    return max(
        0.0 if one[n] is None and other[n] is None else abs(float(one[n]) - float(other[n]))
        for n in one
    )


def _encoding(regions: Regions, conditions: Conditions) -> Iterator[Row]:
    """Detections as run lengths: from the regions, and by way of their masks."""
    detections = _detect(regions, np.random.default_rng(0), present=np.array([0, 1]))
    ids = range(1, NUM_CLASSES + 1)

    def from_masks() -> list[dict[str, Any]]:
        return [rle.mask_to_rle(mask) for mask in regions.masks(detections.proposal_idx)]

    def from_regions() -> list[dict[str, Any]]:
        return to_coco_results(detections, regions, 1, ids)

    times = time_together(
        {"regions": from_regions, "masks": from_masks}, seconds=0.2 if conditions.quick else 4
    )
    case = f"{PER_IMAGE} detections of an image as COCO results"
    yield Row(f"{case}, from its regions", times["regions"].best_ms, "ms")
    yield Row(f"{case}: speed-up over building masks", times["masks"].times(times["regions"]), "x")
    pairs = zip(from_regions(), from_masks(), strict=True)
    differing = sum(one["segmentation"] != other for one, other in pairs)
    yield Row("run lengths that differ between the two", differing, "", at_most=0)


def _draw_regions(rng: np.random.Generator) -> Regions:
    """Wobbly cells; proposals are neighbouring cells taken together, as in a hierarchy."""
    height, width = SIZE
    seeds = rng.uniform((0, 0), SIZE, (NUM_REGIONS, 2))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for grid in (rows, columns):
        grid += 12 * cv2.GaussianBlur(rng.standard_normal(SIZE).astype(np.float32), (0, 0), 6) * 6
    labels = np.zeros(SIZE, np.int32)
    nearest = np.full(SIZE, np.inf, np.float32)
    for number, (y, x) in enumerate(seeds):
        distance = (rows - y) ** 2 + (columns - x) ** 2
        labels[distance < nearest] = number
        np.minimum(nearest, distance, out=nearest)
    centres, radii = rng.uniform((0, 0), SIZE, (PER_IMAGE, 2)), rng.uniform(25, 160, PER_IMAGE)
    near = np.linalg.norm(centres[:, None] - seeds, axis=2)  # (P, R)
    membership = near < np.maximum(radii, near.min(axis=1) + 1)[:, None]
    return Regions(labels, membership, np.bincount(labels.ravel(), minlength=NUM_REGIONS))


def _data_set(
    scenes: list[Regions], num_images: int, rng: np.random.Generator
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO ground truth and results; objects are proposals, those detected first are near them."""
    images, annotations, results = [], [], []
    ids = range(1, NUM_CLASSES + 1)
    for number in range(1, num_images + 1):
        regions = scenes[number % len(scenes)]
        present = rng.choice(NUM_CLASSES, 2, replace=False)
        results += to_coco_results(_detect(regions, rng, present), regions, number, ids)
        height, width = SIZE
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        )
        for proposal in rng.choice(PER_IMAGE, OBJECTS, replace=False):
            grown = cv2.dilate(regions.masks([proposal])[0].astype(np.uint8), np.ones((5, 5)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.choice(present)) + 1,
                    "segmentation": rle.mask_to_rle(grown.astype(bool)),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": n, "name": f"class {n}"} for n in ids]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _detect(regions: Regions, rng: np.random.Generator, present: np.ndarray) -> Detections:
    """Every proposal once, mostly as a class that is present."""
    count = regions.num_proposals
    class_idx = np.where(
        rng.random(count) < 0.7, rng.choice(present, count), rng.integers(NUM_CLASSES, size=count)
    )
    scores = np.sort(rng.random(count).astype(np.float32))[::-1]
    return Detections(rng.permutation(count), class_idx, scores)
