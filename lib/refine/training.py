"""Provenance of a second stage; lib/engine/training.py trains it, like CIM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lib.config import Config
from lib.data.catalog import Dataset
from lib.files import read_json
from lib.provenance import file_fingerprint, fingerprint, masks_seen
from lib.refine.data import InstanceDataset


def refinement_made_from(
    config: Config, dataset: Dataset, data: InstanceDataset, weights: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """The record of a training, see lib/provenance.py.

    Args:
        data: from `open_pseudo_labels`; the bytes of its files count.
        weights: of the CIM network, if the backbone starts from it.
    """
    content = config.refine.model_dump(mode="json")
    del content["input"]["num_workers"], content["test"]
    info = read_json(data.coco.path).get("info")
    seen = [info if isinstance(info, dict) else None]
    corrected = {}
    if data.corrected is not None:
        corrected = {"corrected": file_fingerprint(data.corrected)}
        seen.append({"masks_seen": f"{data.corrected.name} was corrected by a person"})
    images = [data.coco.images[index].file_name for index in data.labelled()]
    return {
        "refine": content,
        "run": {"seed": config.run.seed},
        "weights": fingerprint(weights) if weights is not None else config.refine.model.weights,
        "data": {
            "pseudo_labels": file_fingerprint(data.coco.path),
            **corrected,
            "images": fingerprint(dataset.fingerprints(images)),
            "classes": data.coco.class_names,
        },
        **masks_seen(*seen),
    }


def is_cim(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is that of a CIM network and not of a second stage."""
    return any(name.startswith("Conv_Body.") for name in state["model"])


def is_mask_rcnn(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is that of a Mask R-CNN."""
    return any(name.startswith("roi_heads.") for name in state["model"])
