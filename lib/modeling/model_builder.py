"""The network: an image and its mask proposals in, scores of every proposal out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torchvision.ops import roi_align

from lib.modeling.backbones import Backbone, build_backbone
from lib.modeling.heads import Heads
from lib.modeling.mask_fuse import MaskFuse
from lib.structures import Scores

if TYPE_CHECKING:
    from lib.config import ModelConfig

ROI_SIZE = 7


class CIMNet(nn.Module):
    """Backbone, RoIAlign, MaskFuse and heads, under the names of the published checkpoints.

    Args:
        backbone: gives the feature map.
        num_classes: C, without the background.
        fuse_channels: see MaskFuse.
        hidden_dim: see MaskFuse.
        num_stages: refinement stages; 0 leaves the MIL branch alone.
        integrity: see Heads.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        fuse_channels: int | None = None,
        hidden_dim: int = 4096,
        num_stages: int = 3,
        integrity: bool = True,
    ) -> None:
        super().__init__()
        self.Conv_Body = backbone
        self.Box_Head = MaskFuse(backbone.out_channels, fuse_channels, hidden_dim, ROI_SIZE)
        self.cls_iou_model = Heads(hidden_dim, num_classes, num_stages, integrity)

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
    return CIMNet(
        backbone,
        num_classes,
        config.fuse_channels,
        config.hidden_dim,
        config.num_stages,
        config.integrity,
    )
