"""The backbones by name. A further one is a file in this folder and a line in BACKBONES."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from lib.modeling.backbones.backbone import Backbone, Layer, Use, read_state_dict
from lib.modeling.backbones.hrnet import HRNet
from lib.modeling.backbones.resnet import ResNet18, ResNet50
from lib.modeling.backbones.timm import Timm
from lib.modeling.backbones.vgg import VGG

__all__ = ["BACKBONES", "Backbone", "Layer", "build_backbone", "read_state_dict"]

BACKBONES: dict[str, type[Backbone]] = {
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "vgg16": VGG,
    "hrnet48": HRNet,
    "timm": Timm,
}


def build_backbone(
    name: str, args: Mapping[str, Any] | None = None, section: str = "model", use: Use = "cim"
) -> Backbone:
    """Makes a backbone with random weights.

    Args:
        name: a key of BACKBONES.
        args: options of its constructor.
        section: of the configuration, which errors refer to.
        use: who asks; published networks differ in layers and names.

    Raises:
        ValueError: the name or an option is not known.
    """
    if name not in BACKBONES:
        near = "".join(f"did you mean {n}? " for n in get_close_matches(name, BACKBONES, n=1))
        raise ValueError(
            f"{section}.backbone: no backbone {name!r}; {near}there are {', '.join(BACKBONES)}"
        )
    kind = BACKBONES[name]
    try:
        backbone = kind(**{**(args or {}), **({"use": use} if kind.has_forms else {})})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{section}.backbone_args do not fit {name}: {error}") from error
    backbone.section = section
    return backbone
