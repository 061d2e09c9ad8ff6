"""A network to measure, and the same computation done plainly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torchvision import ops

from lib.benchmarks.drawn import NUM_CLASSES
from lib.benchmarks.report import Conditions
from lib.config import ModelConfig
from lib.fast.precision import bfloat16_speedup
from lib.modeling.model_builder import ROI_SIZE, CIMNet, build_model
from lib.structures import Scores

FULL = ModelConfig(weights="random")
SMALL = ModelConfig(
    backbone="resnet18",
    backbone_args={"widths": [16, 32], "depths": [1, 1], "strides": [1, 2]},
    weights="random",
    hidden_dim=64,
)


class PlainNet(nn.Module):
    """The network as it is written down: float32, one image at a time, torchvision's RoIAlign, and
    MaskFuse's convolution on the features beside the masked features."""

    def __init__(self, model: CIMNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, boxes: Tensor, roi_masks: Tensor) -> Scores:
        model = self.model
        maps = model.Conv_Body(image)
        scale = 1 / model.Conv_Body.stride
        pooled = ops.roi_align(maps, [boxes], ROI_SIZE, scale, sampling_ratio=0, aligned=True)
        both = torch.cat([pooled, pooled * roi_masks[:, None]], dim=1)
        fused = model.Box_Head.mask_branch(both)
        return model.cls_iou_model(model.Box_Head.seg_fc(fused.flatten(1)))


def fastest_precision(conditions: Conditions) -> str:
    """`bfloat16` where its products are faster than those of float32, else `float32`."""
    if conditions.device.type == "cpu" and bfloat16_speedup() < 1:
        return "float32"
    return "bfloat16"


def two_networks(conditions: Conditions) -> tuple[PlainNet, CIMNet]:
    """The plain one and one to be made fast, with equal weights.

    The linear layers, most of all weights, are shared, for the sake of memory.
    """
    torch.manual_seed(conditions.seed)
    model = build_model(SMALL if conditions.quick else FULL, NUM_CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as they are, residual blocks double their input
            nn.init.constant_(module.weight, 0.5)
    shared = {id(parameter): parameter for parameter in model.Box_Head.seg_fc.parameters()}
    plain = PlainNet(copy.deepcopy(model, shared))
    return plain.to(conditions.device), model.to(conditions.device)
