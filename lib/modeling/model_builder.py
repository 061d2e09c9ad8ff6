"""The network: an image and its mask proposals in, scores of every proposal out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torchvision.ops import roi_align

from lib.modeling.backbones import Backbone, build_backbone
from lib.modeling.heads import Heads
from lib.modeling.mask_fuse import ROI_SIZE, MaskFuse
from lib.structures import Scores

if TYPE_CHECKING:
    from lib.config import ModelConfig


class CIMNet(nn.Module):
    """Backbone, RoIAlign, MaskFuse and heads, under the names of the published checkpoints."""

    def __init__(self, backbone: Backbone, mask_fuse: MaskFuse, heads: Heads) -> None:
        super().__init__()
        self.Conv_Body = backbone
        self.Box_Head = mask_fuse
        self.cls_iou_model = heads

    def forward(self, image: Tensor, boxes: Tensor, roi_masks: Tensor) -> Scores:
        """Scores the P proposals of one image; P may be 0.

        Args:
            image: (1, 3, h, w) float32, normalised.
            boxes: (P, 4) xyxy in pixels of `image`.
            roi_masks: (P, 7, 7) float32 in {0, 1}.
        """
        maps = self.Conv_Body(image)  # (1, D, ~h/stride, ~w/stride)
        scale = 1 / self.Conv_Body.stride
        pooled = roi_align(maps, [boxes], ROI_SIZE, scale, sampling_ratio=0, aligned=True)
        features = self.Box_Head(pooled, roi_masks)  # (P, D, 7, 7) to (P, hidden_dim)
        return self.cls_iou_model(features)


def build_model(
    config: ModelConfig,
    num_classes: int,
    prm_backbone: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
) -> CIMNet:
    """Builds the network that a configuration describes and loads its backbone's weights.

    Args:
        config: the section `model`.
        num_classes: C, without the background.
        prm_backbone: the backbone's tensors of the data set's PRM, for `weights: prm`.
        pretrained: False leaves the backbone random, for when a checkpoint follows.

    Raises:
        ValueError: an unknown backbone or option, or weights that do not fit.
        FileNotFoundError: the weights are not there and cannot be downloaded.
    """
    backbone = build_backbone(config.backbone, config.backbone_args)
    if pretrained and config.weights == "prm":
        if prm_backbone is None:
            raise ValueError(
                "model.weights is `prm`, but there is no trained PRM: run tools/prm.py train first"
            )
        backbone.load_weights(prm_backbone, "PRM")
    elif pretrained:
        backbone.start_from(config.weights)
    mask_fuse = MaskFuse(backbone.out_channels, config.fuse_channels, config.hidden_dim)
    heads = Heads(config.hidden_dim, num_classes, config.num_stages, config.integrity)
    return CIMNet(backbone, mask_fuse, heads)
