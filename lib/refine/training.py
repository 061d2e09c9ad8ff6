"""A Mask R-CNN on pseudo labels, trained by the same Trainer as CIM (lib/engine/trainer.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from lib.config import Config
from lib.data.catalog import Dataset
from lib.provenance import file_fingerprint, fingerprint
from lib.refine.data import InstanceDataset
from lib.structures import InstanceSample

LOSSES = ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")
"""Of the region proposal network and of the heads; all have the weight 1."""


def mask_rcnn_losses(
    model: MaskRCNN, sample: InstanceSample, generator: torch.Generator
) -> dict[str, Tensor]:
    """The losses of one image, by the names in LOSSES.

    Args:
        model: from `build_mask_rcnn`, in training mode.
        generator: draws the anchors and regions of the losses.
    """
    network = getattr(model, "module", model)  # inside DistributedDataParallel
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


def refinement_made_from(
    config: Config, dataset: Dataset, data: InstanceDataset, weights: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """The record of a training, see lib/provenance.py.

    Args:
        data: from `open_pseudo_labels`; the bytes of its file count.
        weights: of the CIM network, if the backbone starts from it.
    """
    content = config.refine.model_dump(mode="json")
    del content["input"]["num_workers"], content["test"]
    images = [data.coco.images[index].file_name for index in data.labelled()]
    return {
        "refine": content,
        "run": {"seed": config.run.seed},
        "weights": fingerprint(weights) if weights is not None else config.refine.model.weights,
        "data": {
            "pseudo_labels": file_fingerprint(data.coco.path),
            "images": fingerprint(dataset.fingerprints(images)),
            "classes": data.coco.class_names,
        },
    }


def is_mask_rcnn(state: Mapping[str, Any]) -> bool:
    """Whether the state dict of a checkpoint is that of a Mask R-CNN and not of a CIM network."""
    return any(name.startswith("roi_heads.") for name in state["model"])
