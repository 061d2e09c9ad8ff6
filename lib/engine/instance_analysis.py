"""What the stages of a trained network learn from, and what they learned, beside the true masks.

For images that training has not seen; nothing here changes a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lib.config import Config
from lib.data.coco import CocoImages
from lib.data.loader import CimDataset, ReadImage
from lib.engine.checkpoint import load_checkpoint
from lib.engine.inference import proposal_scores
from lib.engine.setup import trained_model
from lib.evaluation import instance_quality as quality
from lib.evaluation.coco_files import by_image
from lib.evaluation.detections import select_detections
from lib.evaluation.instance_quality import Truth, Values
from lib.evaluation.rle import rle_to_mask
from lib.modeling.heads import CIMMiner, anti_noise_sample, teachers
from lib.proposals.overlaps import overlaps
from lib.structures import Instances, Sample, Scores

DETECTIONS = "detections"


@dataclass(frozen=True, eq=False)
class KnownImage:
    """An image with what is true of its proposals."""

    read: ReadImage
    truth: Truth


def known_images(data: CimDataset, ground_truth: dict[str, Any], name: str) -> list[KnownImage]:
    """The images of a data set that have objects and proposals.

    Args:
        ground_truth: its COCO json; crowds are left out.
        name: what errors call the json, its file for example.

    Raises:
        ValueError: an annotation without a mask, or one that does not fit its image.
    """
    objects = by_image(ground_truth, ground_truth, name)
    class_of = {category_id: c for c, category_id in enumerate(data.coco.category_ids)}
    known = []
    for index, record in enumerate(data.coco.images):
        of_image = objects.get(record.image_id, [])
        read = data.read(index)
        if of_image and len(read.proposals):
            masks = np.stack([rle_to_mask(o["segmentation"]) for o in of_image])
            class_idx = np.array([class_of[o["category_id"]] for o in of_image])
            truth = quality.compare(read.proposals.regions, masks, class_idx)
            known.append(KnownImage(read, truth))
    return known


def analyse_checkpoint(
    path: Path, config: Config, data: CimDataset, images: Sequence[KnownImage], device: str = "cpu"
) -> dict[str, dict[str, float | None]]:
    """Mines on all images as the checkpoint would in training, and detects, in one pass each.

    Args:
        config: what it was trained with.

    Returns:
        `stage 1`, ... (what the stage is taught; without stages none) and `detections`: means over
        all images of the measures of lib.evaluation.instance_quality, those of `picks` as
        `pick ...`; of a stage also `instances` (of an image) and `weighed good` (the share of the
        instances' weight that lies on good ones), and `drawn ...`, the same for the instances that
        anti-noise sampling leaves.

    Raises:
        CheckpointError: it does not fit the configuration or the classes of the data set.
    """
    coco: CocoImages = data.coco
    model = trained_model(config, load_checkpoint(path), path, coco).to(device)
    miner = CIMMiner(**config.mining.model_dump())
    generator = torch.Generator().manual_seed(config.run.seed)
    rows: dict[str, list[Values]] = {}
    for image in tqdm(images, path.stem, unit="image", leave=False):
        sample = data.view(image.read, max(config.test.scales)).to(device)
        with torch.inference_mode():
            scores = model(sample.image[None], sample.boxes, sample.roi_masks)
        for stage, values in enumerate(_stages(scores, sample, image.truth, miner, generator), 1):
            rows.setdefault(f"stage {stage}", []).append(values)
        rows.setdefault(DETECTIONS, []).append(_detections(scores, image, config))
    return {name: quality.means(values) for name, values in rows.items()}


def _stages(
    scores: Scores, sample: Sample, truth: Truth, miner: CIMMiner, generator: torch.Generator
) -> Iterator[Values]:
    """What every stage is taught on one image, and by how good a teacher."""
    cls_prob, integrity = teachers(scores)
    iou, containment = overlaps(sample.membership, sample.areas)
    present = sample.image_labels.nonzero()[:, 0]
    mined = miner.mine(cls_prob, integrity, present, iou, containment)
    drawn = mined
    if miner.anti_noise:
        drawn = anti_noise_sample(mined, cls_prob.shape[2] - 1, generator)
    column = miner.assign(drawn, iou, containment).column.cpu().numpy()
    for s in range(len(cls_prob)):
        thresh = miner.cls_thresh + s * miner.thresh_step
        yield {
            **_of_instances(mined, s, truth),
            **{f"drawn {n}": v for n, v in _of_instances(drawn, s, truth).items()},
            **quality.label_noise(truth, column[s], thresh),
            **_picks(truth, cls_prob[s], integrity[s]),
        }


def _of_instances(instances: Instances, stage: int, truth: Truth) -> Values:
    class_idx = instances.class_idx[stage].cpu().numpy()
    proposal_idx = np.flatnonzero(class_idx >= 0)
    values = quality.instance_quality(truth, proposal_idx, class_idx[proposal_idx])
    weight = instances.weight[stage].cpu().double().numpy()[proposal_idx]
    return {
        **values,
        "instances": np.array([len(proposal_idx)], float),
        "weighed good": (weight @ values["good"] / weight.sum())[None]
        if weight.sum() > 0
        else np.zeros(0),
    }


def _detections(scores: Scores, image: KnownImage, config: Config) -> Values:
    """The best detections of one image, as many as it has objects."""
    cls_prob, integrity = scores.cls_prob, scores.det_prob
    if len(scores.refine_cls):
        cls_prob, integrity = scores.refine_cls.mean(dim=0), scores.refine_iou.mean(dim=0)
    score = proposal_scores(scores).cpu().numpy()
    test = config.test
    found = select_detections(
        score, image.read.proposals.boxes, test.score_thresh, test.nms_thresh, None
    )
    best = quality.best_per_object(image.truth, found.proposal_idx, found.class_idx)
    return {
        **quality.instance_quality(image.truth, *best),
        **_picks(image.truth, cls_prob, integrity, score),
    }


def _picks(
    truth: Truth, cls_prob: torch.Tensor, integrity: torch.Tensor, score: np.ndarray | None = None
) -> Values:
    """Picks by either score of a teacher (P, C+1), and by both together."""
    if score is None:
        score = (cls_prob * integrity)[:, 1:].cpu().numpy()
    by = {
        "cls": cls_prob[:, 1:].cpu().numpy(),
        "integrity": integrity[:, 1:].cpu().numpy(),
        "score": score,
    }
    return {f"pick {name}": values for name, values in quality.picks(truth, by).items()}
