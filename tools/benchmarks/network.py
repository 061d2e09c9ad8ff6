"""A network to measure in its fast form, and a copy to measure as it is written down."""

from __future__ import annotations

import copy

import torch
from torch import nn

from benchmarks.drawn import NUM_CLASSES
from benchmarks.report import Conditions
from lib.config import ModelConfig
from lib.fast.precision import bfloat16_speedup
from lib.modeling.model_builder import CIMNet, build_model

FULL = ModelConfig(weights="random")
SMALL = ModelConfig(
    backbone="resnet18",
    backbone_args={"widths": [16, 32], "depths": [1, 1], "strides": [1, 2]},
    weights="random",
    hidden_dim=64,
)


def fastest_precision(conditions: Conditions) -> str:
    """`bfloat16` where its products are faster than those of float32, else `float32`."""
    if conditions.device.type == "cpu" and bfloat16_speedup() < 1:
        return "float32"
    return "bfloat16"


def two_networks(conditions: Conditions) -> tuple[CIMNet, CIMNet]:
    """The plain network and one to be made fast, with equal weights.

    The linear layers, which hold most weights, are shared to save memory.
    """
    torch.manual_seed(conditions.seed)
    model = build_model(SMALL if conditions.quick else FULL, NUM_CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as they are, residual blocks double their input
            nn.init.constant_(module.weight, 0.5)
    shared = {id(parameter): parameter for parameter in model.Box_Head.seg_fc.parameters()}
    plain = copy.deepcopy(model, shared)
    return plain.to(conditions.device), model.to(conditions.device)
