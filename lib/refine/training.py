"""A Mask R-CNN on pseudo labels, trained by the same Trainer as CIM (lib/engine/trainer.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from lib.config import Config
from lib.data.coco import CocoImages
from lib.structures import InstanceSample

LOSSES = ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")
"""Of the region proposal network and of the heads; all have the weight 1."""


def mask_rcnn_losses(
    model: MaskRCNN, sample: InstanceSample, generator: torch.Generator
) -> dict[str, Tensor]:
    """The losses of one image, by the names in LOSSES.

    Args:
        model: from `build_mask_rcnn`, in training mode.
        generator: draws the anchors and regions that the losses look at.
    """
    network = getattr(model, "module", model)  # which DistributedDataParallel may stand around
    for part in (network.rpn, network.roi_heads):
        part.fg_bg_sampler.generator = generator
    target = {"boxes": sample.boxes, "labels": sample.class_idx + 1, "masks": sample.masks}
    losses = model([sample.image], [target])
    return {name: losses[f"loss_{name}"] for name in LOSSES}


def mask_rcnn_forward(
    model: MaskRCNN, sample: InstanceSample, generator: torch.Generator
) -> tuple[dict[str, Tensor]]:
    """For a Trainer: the network computes its losses itself, and `dict` is the criterion."""
    return (mask_rcnn_losses(model, sample, generator),)


def refinement_depends_on(config: Config, coco: CocoImages) -> dict[str, Any]:
    """Settings and data that must match to resume training, as plain values.

    Args:
        coco: of the pseudo labels; their file counts, byte for byte.
    """
    content = config.refine.model_dump(mode="json")
    del content["input"]["num_workers"], content["test"]
    return {
        "refine": content,
        "run": {"seed": config.run.seed},
        "data": {"pseudo_labels": _digest(coco.path), "classes": coco.class_names},
    }


def is_mask_rcnn(state: Mapping[str, Any]) -> bool:
    """Whether the state dict of a checkpoint is that of a Mask R-CNN and not of a CIM network."""
    return any(name.startswith("roi_heads.") for name in state["model"])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
