"""Mining outside of training: the instances of one image, and a picture of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lib.config import Config
from lib.data.loader import CimDataset, ReadImage
from lib.modeling.criterion import score_image
from lib.modeling.heads import CIMMiner, teachers
from lib.structures import Clusters, Instances, Sample, Scores
from lib.visualization.draw import draw_instances, enlarge
from lib.visualization.panels import side_by_side

AT_MOST = 3
"""Instances drawn of a class: those of the highest weight, which would be hidden by the others."""


@dataclass(frozen=True, eq=False)
class Mined:
    """The scores of an image's P proposals and the instances mined from them."""

    scores: Scores
    iou: Tensor
    """(P, P)"""
    containment: Tensor
    """(P, P), [i, j] = |i & j| / |j|."""
    instances: Instances | None
    """S stages, before anti-noise sampling; None for a network without stages."""


@torch.no_grad()
def mine_image(model: nn.Module, miner: CIMMiner, sample: Sample) -> Mined:
    """Mines an image as training would at this moment.

    Args:
        sample: on the model's device.
    """
    scores, _, iou, containment, _ = score_image(model, sample, None)
    instances = None
    if len(scores.refine_cls_prob):
        clusters = Clusters(sample.cluster_id, sample.cluster_column)
        instances = miner.mine(*teachers(scores), sample.present, iou, containment, clusters)
    return Mined(scores, iou, containment, instances)


def training_view(read: ReadImage, config: Config) -> Sample:
    """An image at the middle one of the training scales, not mirrored."""
    scales = sorted(config.input.train_scales)
    return CimDataset.view(read, scales[len(scales) // 2])


def best_first(mined: Instances, stage: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The K instances of a stage by descending weight.

    Returns:
        (K,) index of the proposal, class and weight of each.
    """
    class_idx = mined.class_idx[stage].cpu().numpy()
    weight = mined.weight[stage].float().cpu().numpy()
    found = np.flatnonzero(class_idx >= 0)
    found = found[np.argsort(-weight[found], kind="stable")]
    return found, class_idx[found], weight[found]


def mining_view(config: Config, data: CimDataset, device: str) -> Callable[[nn.Module], np.ndarray]:
    """Draws what is mined as training goes on, always on the first image that has a label.

    Returns:
        From the network to an (H, W, 3) uint8 RGB picture, see `draw_mined`.
    """
    read = data.read(data.labelled()[0])
    sample = training_view(read, config).to(device)

    def draw(model: nn.Module) -> np.ndarray:
        mined = mine_image(model, config.mining, sample)
        return draw_mined(read, mined.instances, data.coco.class_names)

    return draw


def draw_mined(read: ReadImage, mined: Instances, class_names: Sequence[str]) -> np.ndarray:
    """The image, then what each stage takes for instances, with their weights.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    present = [class_names[c] for c in np.flatnonzero(read.record.image_labels)]
    panels = [(f"{read.record.file_name}: {', '.join(present)}", enlarge(read.image))]
    for stage in range(len(mined.class_idx)):
        found, class_idx, weight = best_first(mined, stage)
        best = [n for c in np.unique(class_idx) for n in np.flatnonzero(class_idx == c)[:AT_MOST]]
        best = np.array(best, np.int64)
        masks = read.proposals.regions.masks(found[best])
        drawn = draw_instances(read.image, masks, class_idx[best], weight[best], class_names)
        teacher = f"stage {stage}" if stage else "the MIL branch"
        more = f" ({len(best)} drawn)" if len(best) < len(found) else ""
        panels.append((f"stage {stage + 1}, instances by {teacher}: {len(found)}{more}", drawn))
    return side_by_side(panels)
