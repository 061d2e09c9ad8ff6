"""The networks that are trained on pseudo labels (CIM+), by name.

A further one is a file in this folder and a line in NETWORKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.config import RefineModelConfig, RefineTestConfig
from lib.modeling.backbones import Backbone, build_backbone
from lib.structures import InstanceSample

NETWORKS = {
    "mask_rcnn": ("lib.refine.mask_rcnn", None),
    "mask2former": ("lib.refine.mask2former", "transformers"),
}
"""By name the module that has it as SECOND_STAGE, and the optional package that this imports."""


class Found(NamedTuple):
    """A detection in an image."""

    class_idx: int
    score: float
    mask: np.ndarray
    """(H, W) bool, of the whole image."""


@dataclass(frozen=True)
class SecondStage:
    """A network: how it is built, trained and used."""

    title: str
    build: Callable[..., nn.Module]
    """(section `refine.model`, section `refine.test`, C without the background, state dict of a CIM
    network or None, pretrained), see `starting_backbone`."""
    losses: Callable[[nn.Module, InstanceSample, torch.Generator], dict[str, Tensor]]
    """Unweighted, of one image. All random draws take the generator. The model may be inside
    DistributedDataParallel."""
    loss_weights: Mapping[str, float]
    optimizer: Literal["sgd", "adamw"]
    detect: Callable[[nn.Module, Tensor, tuple[int, int], RefineTestConfig], Iterator[Found]]
    """(model, image (3, h, w), size (H, W) of the masks, section `refine.test`), best first."""
    boxes: bool = False
    """It also learns from instances of which only the box is known."""


def second_stage(name: str) -> SecondStage:
    """The network that `refine.model.network` names; raises as `check_network`."""
    check_network(name)
    return import_module(NETWORKS[name][0]).SECOND_STAGE


def check_network(name: str) -> None:
    """Raises ValueError if there is no network of that name, or its package is not installed."""
    if name not in NETWORKS:
        near = "".join(f"did you mean {n}? " for n in get_close_matches(name, NETWORKS, n=1))
        raise ValueError(
            f"refine.model.network: no network {name!r}; {near}there are {', '.join(NETWORKS)}"
        )
    package = NETWORKS[name][1]
    if package and find_spec(package) is None:
        raise ValueError(
            f"refine.model.network is {name}, which needs the package {package}: "
            f"`pip install -e .[{package}]`, or set it to mask_rcnn"
        )


def starting_backbone(
    config: RefineModelConfig, cim_backbone: Mapping[str, Tensor] | None, pretrained: bool
) -> Backbone:
    """Builds the backbone of a second stage and loads its weights.

    Args:
        cim_backbone: the state dict of a CIM network, for `weights: cim`.
        pretrained: False leaves the backbone random, for a checkpoint to be loaded.

    Raises:
        ValueError: an unknown backbone or option, or weights that do not fit.
        FileNotFoundError: the weights are missing and cannot be downloaded.
    """
    body = build_backbone(config.backbone, config.backbone_args, "refine.model", "pyramid")
    if pretrained and config.weights == "cim":
        if cim_backbone is None:
            raise ValueError(
                "refine.model.weights is `cim`, but no CIM network is at hand: name its run"
            )
        body.load_weights(cim_backbone, "the CIM network")
    elif pretrained:
        body.start_from(config.weights)
    return body


def pyramid_levels(body: Backbone, finest: int) -> list[int]:
    """Indices of a backbone's last layer of every stride of at least `finest`, the finest first.

    Raises:
        ValueError: the strides do not double from level to level.
    """
    layers = body.layers
    last = sorted({layer.stride: n for n, layer in enumerate(layers)}.values())
    levels = [n for n in last if layers[n].stride >= finest] or last[-1:]
    strides = [layers[n].stride for n in levels]
    if any(2 * fine != coarse for fine, coarse in pairwise(strides)):
        raise ValueError(
            f"{body.section}.backbone: a pyramid needs strides that double from level to "
            f"level, got {', '.join(map(str, strides))}; check {body.section}.backbone_args"
        )
    return levels
