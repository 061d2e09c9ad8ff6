"""Which instances are mined on one image, stage by stage, as a picture of how training goes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lib.config import Config
from lib.data.loader import CimDataset
from lib.modeling.heads import CIMMiner, teachers
from lib.proposals.overlaps import overlaps
from lib.structures import Instances
from lib.visualization.draw import draw_instances, enlarge
from lib.visualization.panels import side_by_side

AT_MOST = 3
"""Instances drawn of a class: those of the highest weight, which the others would hide."""


class MiningView:
    """Always the same image, the first that has a label, not mirrored.

    Args:
        long_side: the image is scaled to it for the network.
        device: of the network.
    """

    def __init__(
        self, dataset: CimDataset, miner: CIMMiner, long_side: int, device: torch.device | str
    ) -> None:
        index = dataset.labelled()[0]
        self.read = dataset.read(index)
        self.sample = dataset.view(self.read, long_side)
        self.class_names = dataset.coco.class_names
        self.miner = miner
        self.device = device

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the image, then what each stage takes for instances, before
        sampling, with their weights."""
        sample = self.sample.to(self.device)
        scores = model(sample.image[None], sample.boxes, sample.roi_masks)
        present = sample.image_labels.nonzero()[:, 0]
        iou, containment = overlaps(sample.membership, sample.areas)
        mined = self.miner.mine(*teachers(scores), present, iou, containment)
        names = ", ".join(self.class_names[c] for c in present.tolist())
        panels = [(f"{self.read.record.file_name}: {names}", enlarge(self.read.image))]
        for stage in range(len(mined.class_idx)):
            panels.append(self._panel(stage, mined))
        return side_by_side(panels)

    def _panel(self, stage: int, mined: Instances) -> tuple[str, np.ndarray]:
        class_idx = mined.class_idx[stage].cpu().numpy()
        weight = mined.weight[stage].float().cpu().numpy()
        found = np.flatnonzero(class_idx >= 0)
        order = found[np.argsort(-weight[found], kind="stable")]
        best = np.array(
            [
                n
                for c in np.unique(class_idx[found])
                for n in order[class_idx[order] == c][:AT_MOST]
            ],
            dtype=np.int64,
        )
        masks = self.read.proposals.regions.masks(best)
        drawn = draw_instances(
            self.read.image, masks, class_idx[best], weight[best], self.class_names
        )
        teacher = f"stage {stage}" if stage else "the MIL branch"
        more = f" ({len(best)} drawn)" if len(best) < len(found) else ""
        return f"stage {stage + 1}, instances by {teacher}: {len(found)}{more}", drawn


def mining_view(config: Config, data: CimDataset, device: str) -> MiningView:
    """Pictures of what is mined as training goes on; at the middle one of the training scales."""
    scales = sorted(config.input.train_scales)
    return MiningView(data, config.mining, scales[len(scales) // 2], device)
