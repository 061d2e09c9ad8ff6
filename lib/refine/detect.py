"""From an image to the detections of a Mask R-CNN, in COCO's result format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from lib.config import RefineConfig
from lib.proposals import rle
from lib.refine.data import InstanceDataset, ReadInstances
from lib.structures import InstanceSample

_PASTED_AT_ONCE = 16
"""Float32 masks of the whole image in memory at a time."""


@dataclass(frozen=True)
class MaskRCNNDetector:
    """One pass over an image, for `detect_dataset`; the model applies its own thresholds."""

    model: MaskRCNN
    category_ids: Sequence[int]
    """COCO category id of every class."""
    settings: RefineConfig = RefineConfig()
    """`input.test_scale` and `test.mask_thresh` are used."""
    device: torch.device | str = "cpu"

    def prepare(self, dataset: InstanceDataset, index: int) -> tuple[ReadInstances, InstanceSample]:
        """Reads image `index`; may run in another thread."""
        read = dataset.read(index)
        return read, dataset.view(read, self.settings.input.test_scale)

    @torch.inference_mode()
    def __call__(self, read: ReadInstances, view: InstanceSample) -> list[dict[str, Any]]:
        """COCO results of one image, best first; masks without a pixel are left out."""
        (found,) = self.model([view.image.to(self.device)])
        height, width = read.record.size
        h, w = view.image.shape[-2:]
        scale = found["boxes"].new_tensor([width / w, height / h] * 2)
        masks = self._pasted(found["masks"], found["boxes"] * scale, (height, width))
        results = []
        for label, score, mask in zip(
            found["labels"].tolist(), found["scores"].tolist(), masks, strict=True
        ):
            encoded = rle.mask_to_rle(mask.numpy())
            box = rle.tight_box(encoded)
            if box[2] and box[3]:
                results.append(
                    {
                        "image_id": int(read.record.image_id),
                        "category_id": int(self.category_ids[label - 1]),
                        "score": score,
                        "bbox": box,
                        "segmentation": encoded,
                    }
                )
        return results

    def _pasted(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """(K, 1, 28, 28) probabilities in their (K, 4) boxes -> K bool masks of the whole image."""
        pasted: list[Tensor] = []
        for start in range(0, len(masks), _PASTED_AT_ONCE):
            part = slice(start, start + _PASTED_AT_ONCE)
            whole = paste_masks_in_image(masks[part], boxes[part], size)  # (k, 1, H, W)
            pasted += (whole[:, 0] > self.settings.test.mask_thresh).cpu().unbind()
        return pasted
