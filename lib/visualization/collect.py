"""From COCO files to what a gallery shows: instances by image, hits and misses, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.catalog import Dataset
from lib.data.coco import CocoImages
from lib.engine.runs import read_lines
from lib.evaluation.coco_eval import VOC_THRESHOLDS, evaluate_segm
from lib.evaluation.coco_files import read_ground_truth, read_layer
from lib.evaluation.per_image import Comparison, compare
from lib.files import read_json
from lib.visualization.gallery import LAYERS, Instance, Page, Picture


@dataclass(frozen=True)
class Collected:
    """All about the images of a data set, in its order."""

    pictures: list[Picture]
    layers: list[str]
    """That there is anything of."""
    compared: str | None
    """The layer that was compared with the ground truth; None where that cannot be."""
    evaluation: Mapping[str, Any]
    """As from `evaluate_segm`, {} without a comparison."""
    precision: dict[int, np.ndarray]
    """(101,) precision over recall by class index."""


def collect(
    coco: CocoImages,
    image_dir: Path,
    results: Mapping[str, Path],
    *,
    score_thresh: float = 0.0,
    per_image: int | None = None,
    iou_thresh: float = 0.5,
    iou_thresholds: Sequence[float] = VOC_THRESHOLDS,
) -> Collected:
    """Reads results and, where the data set has masks, compares the first of them with these.

    Args:
        results: COCO result or annotation files by layer (`detections`, `pseudo_labels`).
        score_thresh: what is below is not shown; comparing takes all.
        per_image: the best so many of an image are shown; None shows all.
        iou_thresh: from this IoU on a detection hits an object.
        iou_thresholds: of the AP over all images.

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong; the text names the entry.
    """
    truth = read_ground_truth(coco.path, need_masks=False)
    layers = {name: read_layer(read_json(p), truth, str(p)) for name, p in results.items()}
    truth = truth if truth["annotations"] else None
    compared = next(iter(layers), None) if truth is not None else None
    comparison, evaluation = None, {}
    if compared is not None:
        scored = [
            {**d, "score": 1.0 if d["score"] is None else d["score"]} for d in layers[compared]
        ]
        comparison = compare(truth, scored, iou_thresh)
        evaluation = evaluate_segm(truth, scored, iou_thresholds)
    marks = {compared: comparison.is_hit} if comparison else {}
    if truth is not None:
        found = comparison.is_found if comparison else [None] * len(truth["annotations"])
        objects = [
            ({**a, "score": None}, f)
            for a, f in zip(truth["annotations"], found, strict=True)
            if not a["iscrowd"]
        ]
        layers["ground_truth"] = [a for a, _ in objects]
        marks["ground_truth"] = [f for _, f in objects]
    grouped = {
        name: _by_image(entries, marks.get(name), coco, score_thresh, per_image)
        for name, entries in layers.items()
    }
    return Collected(
        pictures=_pictures(coco, image_dir, grouped, comparison),
        layers=list(layers),
        compared=compared,
        evaluation=evaluation,
        precision={
            coco.category_ids.index(id_): curve
            for id_, curve in (comparison.precision if comparison else {}).items()
        },
    )


def _by_image(
    entries: Sequence[Mapping[str, Any]],
    hits: Sequence[bool | None] | None,
    coco: CocoImages,
    score_thresh: float,
    per_image: int | None,
) -> dict[int, list[Instance]]:
    """By image id, best first; ground truth, which has no scores, is not limited."""
    class_of = {id_: index for index, id_ in enumerate(coco.category_ids)}
    grouped: dict[int, list[Instance]] = {}
    for number, entry in enumerate(entries):
        score = entry["score"]
        if score is None or score >= score_thresh:
            instance = Instance(
                class_idx=class_of[entry["category_id"]],
                segmentation=entry["segmentation"],
                score=score,
                hit=hits[number] if hits is not None else None,
            )
            grouped.setdefault(entry["image_id"], []).append(instance)
    for image_id, instances in grouped.items():
        if any(instance.score is not None for instance in instances):
            instances.sort(key=lambda instance: -(instance.score or 0.0))
            grouped[image_id] = instances[:per_image]
    return grouped


def _pictures(
    coco: CocoImages,
    image_dir: Path,
    grouped: Mapping[str, Mapping[int, Sequence[Instance]]],
    comparison: Comparison | None,
) -> list[Picture]:
    pictures = []
    for record in coco.images:
        quality = comparison.images[record.image_id] if comparison else None
        pictures.append(
            Picture(
                record=record,
                path=image_dir / record.file_name,
                layers={name: of.get(record.image_id, []) for name, of in grouped.items()},
                ap=quality and quality.ap,
                objects=quality and quality.objects,
                found=quality and quality.found,
            )
        )
    return pictures


def describe(
    collected: Collected,
    coco: CocoImages,
    dataset: Dataset,
    run: Path | None,
    results: dict[str, Path],
    iou_thresh: float,
) -> Page:
    """The page of a gallery, without its details.

    Args:
        run: whose curves are shown; None for results of no run.
        results: files by layer.
    """
    facts = [("Data set", f"{dataset.name} ({coco.path})")]
    if run is not None:
        facts.append(("Run", str(run)))
    facts += [(LAYERS[name].title, str(path)) for name, path in results.items()]
    if collected.compared is not None:
        what = LAYERS[collected.compared].title
        facts.append(("Compared with the ground truth", what))
    title = f"{dataset.name}, {run.name}" if run is not None else dataset.name
    return Page(
        title=title,
        facts=facts,
        class_names=coco.class_names,
        layers={name: layer for name, layer in LAYERS.items() if name in collected.layers},
        metrics=collected.evaluation.get("metrics", {}),
        per_class=collected.evaluation.get("per_class", {}),
        precision=collected.precision,
        iou_thresh=iou_thresh,
        history=read_lines(run / "history.jsonl") if run is not None else [],
    )
