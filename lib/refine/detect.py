"""From an image to the detections of a second stage, in COCO's result format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lib.config import RefineConfig
from lib.proposals import rle
from lib.refine.data import InstanceDataset
from lib.refine.second_stage import second_stage
from lib.structures import InstanceSample, ReadInstances


@dataclass(frozen=True)
class InstanceDetector:
    """One pass over an image, for `detect_dataset`; the model applies its own thresholds."""

    model: nn.Module
    """Of `settings.model.network`."""
    category_ids: Sequence[int]
    """COCO category id of every class."""
    settings: RefineConfig = RefineConfig()
    """`model.network`, `input.test_scale` and `test` are used."""
    device: torch.device | str = "cpu"

    def prepare(self, dataset: InstanceDataset, index: int) -> tuple[ReadInstances, InstanceSample]:
        """Reads image `index`; may run in another thread."""
        read = dataset.read(index)
        return read, dataset.view(read, self.settings.input.test_scale)

    @torch.inference_mode()
    def __call__(self, read: ReadInstances, view: InstanceSample) -> list[dict[str, Any]]:
        """COCO results of one image, best first; masks without a pixel are left out."""
        detect = second_stage(self.settings.model.network).detect
        image, size = view.image.to(self.device), read.record.size
        results = []
        for class_idx, score, mask in detect(self.model, image, size, self.settings.test):
            encoded = rle.mask_to_rle(mask)
            box = rle.tight_box(encoded)
            if box[2] and box[3]:
                results.append(
                    {
                        "image_id": int(read.record.image_id),
                        "category_id": int(self.category_ids[class_idx]),
                        "score": score,
                        "bbox": box,
                        "segmentation": encoded,
                    }
                )
        return results
