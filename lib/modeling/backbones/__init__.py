"""The trunks by name. A further one is a file in this folder and a line in BACKBONES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lib.modeling.backbones.hrnet import hrnet48
from lib.modeling.backbones.resnet import resnet18, resnet50
from lib.modeling.backbones.trunk import Trunk, read_state_dict
from lib.modeling.backbones.vgg import vgg16

__all__ = ["BACKBONES", "Trunk", "build_backbone", "read_state_dict"]

BACKBONES: dict[str, Callable[..., Trunk]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "hrnet48": hrnet48,
}


def build_backbone(name: str, **args: Any) -> Trunk:
    """Makes a trunk with random weights.

    Args:
        name: a key of BACKBONES.
        args: options of that trunk's constructor.

    Raises:
        ValueError: the name or an option is not known.
    """
    if name not in BACKBONES:
        raise ValueError(f"model.backbone: no backbone {name!r}; there are {', '.join(BACKBONES)}")
    try:
        return BACKBONES[name](**args)
    except TypeError as error:
        raise ValueError(f"model.backbone_args do not fit {name}: {error}") from error
