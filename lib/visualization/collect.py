"""From COCO files to the content of a gallery: instances by image, hits and misses, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.data.catalog import Dataset
from lib.data.coco import CocoImages
from lib.engine.runs import read_lines
from lib.evaluation.coco_eval import evaluate_segm
from lib.evaluation.coco_files import group_by_image, read_ground_truth, read_layer
from lib.evaluation.per_image import compare
from lib.files import read_json
from lib.visualization.gallery import LAYERS, Instance, Page, Picture


def collect(
    dataset: Dataset,
    coco: CocoImages,
    run: Path | None,
    results: Mapping[str, Path],
    *,
    score_thresh: float,
    per_image: int,
    iou_thresh: float,
    iou_thresholds: Sequence[float],
) -> tuple[Page, list[Picture]]:
    """Reads results and, where the data set has masks, compares the first of them with the masks.

    Args:
        run: the run whose curves are shown; None for results of no run.
        results: COCO result or annotation files by layer (`detections`, `pseudo_labels`).
        score_thresh: lower scores are not shown, but compared.
        per_image: maximum number of instances of an image and layer, best first.
        iou_thresh: IoU from which a detection hits an object.
        iou_thresholds: of the AP over all images.

    Returns:
        (the page, the images of the data set in its order), both without details.

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong; the text names the entry.
    """
    truth = read_ground_truth(coco.path, need_masks=False)
    layers = {name: read_layer(read_json(p), truth, str(p)) for name, p in results.items()}
    compared = next(iter(layers), None) if truth["annotations"] else None
    comparison, evaluation = None, {}
    is_found: Sequence[bool | None] = [None] * len(truth["annotations"])
    if compared is not None:
        scored = [
            {**d, "score": 1.0 if d["score"] is None else d["score"]} for d in layers[compared]
        ]
        comparison = compare(truth, scored, iou_thresh)
        evaluation = evaluate_segm(truth, scored, iou_thresholds)
        for detection, hit in zip(layers[compared], comparison.is_hit, strict=True):
            detection["hit"] = hit
        is_found = comparison.is_found
    if truth["annotations"]:
        layers["ground_truth"] = [
            {**annotation, "score": None, "hit": found}
            for annotation, found in zip(truth["annotations"], is_found, strict=True)
            if not annotation["iscrowd"]
        ]
    by_layer = {name: group_by_image(layer, score_thresh) for name, layer in layers.items()}
    class_of = {id_: index for index, id_ in enumerate(coco.category_ids)}

    def instances(entries: Sequence[Mapping[str, Any]]) -> list[Instance]:
        if entries and entries[0]["score"] is not None:
            entries = entries[:per_image]
        return [
            Instance(class_of[e["category_id"]], e["segmentation"], e["score"], e.get("hit"))
            for e in entries
        ]

    pictures = []
    for record in coco.images:
        quality = comparison and comparison.images[record.image_id]
        pictures.append(
            Picture(
                record=record,
                path=dataset.images / record.file_name,
                layers={n: instances(of.get(record.image_id, ())) for n, of in by_layer.items()},
                ap=quality and quality.ap,
                objects=quality and quality.objects,
                found=quality and quality.found,
            )
        )
    facts = [("Data set", f"{dataset.name} ({coco.path})")]
    facts += [("Run", str(run))] if run is not None else []
    facts += [(LAYERS[name].title, str(path)) for name, path in results.items()]
    if compared is not None:
        facts.append(("Compared with the ground truth", LAYERS[compared].title))
    precision = comparison.precision if comparison else {}
    page = Page(
        title=f"{dataset.name}, {run.name}" if run is not None else dataset.name,
        facts=facts,
        class_names=coco.class_names,
        layers={name: layer for name, layer in LAYERS.items() if name in layers},
        metrics=evaluation.get("metrics", {}),
        per_class=evaluation.get("per_class", {}),
        precision={class_of[id_]: curve for id_, curve in precision.items()},
        iou_thresh=iou_thresh,
        history=read_lines(run / "history.jsonl") if run is not None else [],
    )
    return page, pictures
