"""The network: an image and its mask proposals in, scores of every proposal out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lib.config import ModelConfig
from lib.modeling.backbones import Trunk, build_backbone, read_state_dict
from lib.modeling.heads import Heads
from lib.modeling.mask_fuse import MaskFuse
from lib.modeling.roi_align import roi_align
from lib.structures import Scores

ROI_SIZE = 7


class CIMNet(nn.Module):
    """Backbone, RoIAlign, MaskFuse and heads, under the names of the published checkpoints.

    Args:
        trunk: the backbone.
        num_classes: C, without the background.
        fuse_channels: see MaskFuse.
        hidden_dim: see MaskFuse.
        num_stages: refinement stages; 0 leaves the MIL branch alone.
        integrity: see Heads.
    """

    def __init__(
        self,
        trunk: Trunk,
        num_classes: int,
        fuse_channels: int | None = None,
        hidden_dim: int = 4096,
        num_stages: int = 3,
        integrity: bool = True,
    ) -> None:
        super().__init__()
        self.Conv_Body = trunk
        self.Box_Head = MaskFuse(trunk.out_channels, fuse_channels, hidden_dim, ROI_SIZE)
        self.cls_iou_model = Heads(hidden_dim, num_classes, num_stages, integrity)

    def forward(self, image: Tensor, boxes: Tensor, roi_masks: Tensor) -> Scores:
        """Scores the proposals of one image.

        Args:
            image: (1, 3, h, w) float32, normalised.
            boxes: (P, 4) xyxy in pixels of `image`.
            roi_masks: (P, 7, 7) float32 in {0, 1}.
        """
        features = self.Conv_Body(image)  # (1, D, ~h/stride, ~w/stride)
        pooled = roi_align(features, boxes, ROI_SIZE, 1 / self.Conv_Body.stride)  # (P, D, 7, 7)
        return self.cls_iou_model(self.Box_Head(pooled, roi_masks))


def build_model(
    config: ModelConfig,
    num_classes: int,
    prm_trunk: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
) -> CIMNet:
    """Makes the network that a configuration describes, and loads what its trunk starts from.

    Args:
        config: the section `model`.
        num_classes: C, without the background.
        prm_trunk: the trunk of the data set's PRM by name, for `weights: prm`.
        pretrained: False leaves the trunk random, for when a checkpoint follows.

    Raises:
        ValueError: an unknown backbone or option, or weights that do not fit.
        FileNotFoundError: the weights are not there and cannot be downloaded.
    """
    trunk = build_backbone(config.backbone, **config.backbone_args)
    if pretrained and config.weights == "imagenet":
        trunk.load_weights(trunk.imagenet_weights(), "ImageNet weights")
    elif pretrained and config.weights == "prm":
        if prm_trunk is None:
            raise ValueError(
                "model.weights is `prm`, but there is no trained PRM: run tools/train_prm.py first"
            )
        trunk.load_weights(prm_trunk, "PRM")
    elif pretrained and config.weights != "random":
        trunk.load_weights(read_state_dict(config.weights), config.weights)
    return CIMNet(
        trunk,
        num_classes,
        config.fuse_channels,
        config.hidden_dim,
        config.num_stages,
        config.integrity,
    )
