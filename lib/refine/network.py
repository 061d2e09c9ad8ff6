"""torchvision's Mask R-CNN (He et al., ICCV 2017) as it is trained and asked here.

The parameters have torchvision's names: a checkpoint of the ResNet-50 form also loads into
`torchvision.models.detection.maskrcnn_resnet50_fpn`. Three parts are exchanged. Images come scaled
and normalised already. Random draws take a generator, so that a training can be gone on with and
its images worked on in parallel. Detections keep their small masks, which are pasted into the image
at its own size (lib/refine/detect.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log2
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from lib.config import RefineModelConfig, RefineTestConfig
from lib.modeling.backbones import build_backbone, read_state_dict
from lib.modeling.backbones.trunk import download_weights

_BOX_SIZE, _MASK_SIZE = 7, 14
"""Cells that a region is pooled to, for the box head and the mask head."""
_MULTIPLE = 32
"""The sides of an image are padded to a multiple of this."""


class PyramidTrunk(nn.Module):
    """A trunk under a feature pyramid (Lin et al., CVPR 2017), as a Mask R-CNN wants it.

    Attributes:
        out_channels: of every level.
        strides: of every level, in pixels; the last is pooled from the one before.
    """

    out_channels: int
    strides: list[int]

    def load_trunk(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Copies a trunk's weights from a state dict and ignores what has no place in it.

        Raises:
            ValueError: they do not fit.
        """
        raise NotImplementedError

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        """As `Trunk.imagenet_weights`."""
        raise NotImplementedError


class ResNet50FPN(PyramidTrunk):
    """torchvision's ResNet-50-FPN: the stem and the first stage and all batch norms frozen."""

    strides = [4, 8, 16, 32, 64]

    def __init__(self, channels: int) -> None:
        super().__init__()
        made = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        self.body = made.body
        self.fpn = made.fpn
        if channels != made.out_channels:
            self.fpn = FeaturePyramidNetwork(
                [256, 512, 1024, 2048], channels, extra_blocks=LastLevelMaxPool()
            )
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.body(images))

    def load_trunk(self, weights: Mapping[str, Tensor], source: str) -> None:
        mine = self.body.state_dict()
        found = {name.removeprefix("backbone.body."): value for name, value in weights.items()}
        wrong = [n for n in mine if n not in found or found[n].shape != mine[n].shape]
        if wrong:
            raise ValueError(
                f"{source}: not the weights of torchvision's ResNet-50: {len(wrong)} tensors are "
                f"missing or of another shape ({', '.join(wrong[:3])}); see refine.model.weights"
            )
        self.body.load_state_dict({name: found[name] for name in mine})

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        return download_weights(ResNet50_Weights.IMAGENET1K_V1)


class ResNet18FPN(PyramidTrunk):
    """The small trunk of CIM for CPUs; the last stage of every stride feeds the pyramid."""

    def __init__(self, channels: int, **trunk_args: Any) -> None:
        super().__init__()
        self.body = build_backbone("resnet18", **trunk_args)
        strides = self.body.stage_strides
        last = [n for n, s in enumerate(strides) if strides[n + 1 : n + 2] != [s]]
        self.levels = [self.body.stages[n] for n in last]
        self.fpn = FeaturePyramidNetwork(
            [self.body.stage_channels[n] for n in last], channels, extra_blocks=LastLevelMaxPool()
        )
        self.out_channels = channels
        self.strides = [strides[n] for n in last] + [2 * strides[last[-1]]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body.res1(images)
        levels = {}
        for name in self.body.stages:
            features = self.body.get_submodule(name)(features)
            if name in self.levels:
                levels[str(len(levels))] = features
        return self.fpn(levels)

    def load_trunk(self, weights: Mapping[str, Tensor], source: str) -> None:
        self.body.load_weights(weights, source)

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        return self.body.imagenet_weights()


BACKBONES: dict[str, Callable[..., PyramidTrunk]] = {
    "resnet50": ResNet50FPN,
    "resnet18": ResNet18FPN,
}


def build_mask_rcnn(
    config: RefineModelConfig,
    test: RefineTestConfig,
    num_classes: int,
    cim_trunk: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
) -> MaskRCNN:
    """Makes the Mask R-CNN that a configuration describes, and loads what its trunk starts from.

    Args:
        config, test: the sections `refine.model` and `refine.test`.
        num_classes: C, without the background.
        cim_trunk: the state dict of a CIM network, for `weights: cim`.
        pretrained: False leaves the trunk random, for when a checkpoint follows.

    Raises:
        ValueError: an unknown backbone or option, or weights that do not fit.
        FileNotFoundError: the weights are not there and cannot be downloaded.
    """
    backbone = _pyramid(config)
    if pretrained:
        _load_trunk(backbone, config.weights, cim_trunk)
    channels = backbone.out_channels
    mask_layers = (channels,) * config.mask_layers
    model = MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            tuple((config.anchor_scale * stride,) for stride in backbone.strides),
            ((0.5, 1.0, 2.0),) * len(backbone.strides),
        ),
        rpn_pre_nms_top_n_train=config.rois_before_nms,
        rpn_pre_nms_top_n_test=config.rois_before_nms,
        rpn_post_nms_top_n_train=config.rois_after_nms,
        rpn_post_nms_top_n_test=config.rois_after_nms,
        box_roi_pool=_roi_pool(backbone.strides[:-1], _BOX_SIZE),
        box_head=TwoMLPHead(channels * _BOX_SIZE**2, config.head_dim),
        box_predictor=FastRCNNPredictor(config.head_dim, num_classes + 1),
        box_score_thresh=test.score_thresh,
        box_nms_thresh=test.nms_thresh,
        box_detections_per_img=test.detections_per_image,
        mask_roi_pool=_roi_pool(backbone.strides[:-1], _MASK_SIZE),
        mask_head=MaskRCNNHeads(channels, mask_layers, dilation=1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
    )
    model.transform = PaddedBatch()
    model.rpn.fg_bg_sampler = BalancedSampler(config.anchors_per_image, 0.5)
    model.roi_heads.fg_bg_sampler = BalancedSampler(config.rois_per_image, 0.25)
    return model


def _pyramid(config: RefineModelConfig) -> PyramidTrunk:
    if config.backbone not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise ValueError(
            f"refine.model.backbone: no backbone {config.backbone!r}; there are {known}"
        )
    try:
        return BACKBONES[config.backbone](config.fpn_channels, **config.backbone_args)
    except TypeError as error:
        raise ValueError(
            f"refine.model.backbone_args do not fit {config.backbone}: {error}"
        ) from error


def _load_trunk(
    backbone: PyramidTrunk, weights: str, cim_trunk: Mapping[str, Tensor] | None
) -> None:
    if weights == "imagenet":
        backbone.load_trunk(backbone.imagenet_weights(), "ImageNet weights")
    elif weights == "cim":
        if cim_trunk is None:
            raise ValueError(
                "refine.model.weights is `cim`, but no CIM network is at hand: name its run"
            )
        backbone.load_trunk(cim_trunk, "the CIM network")
    elif weights != "random":
        backbone.load_trunk(read_state_dict(weights), weights)


def _roi_pool(strides: list[int], size: int) -> MultiScaleRoIAlign:
    """RoIAlign from the pyramid level that suits a region's size."""
    pool = MultiScaleRoIAlign([str(n) for n in range(len(strides))], size, sampling_ratio=2)
    # torchvision guesses the scales from the size of the first image it sees, without padding: for
    # small images the guess is wrong, and it would make a resumed training differ.
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(log2(strides[0])), int(log2(strides[-1])))
    return pool


class PaddedBatch(nn.Module):
    """Takes the place of torchvision's transform, which would scale and normalise once more."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        sizes = [tuple(image.shape[-2:]) for image in images]
        height, width = (
            -(-max(side) // _MULTIPLE) * _MULTIPLE for side in zip(*sizes, strict=True)
        )
        padded = [F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2])) for i in images]
        return ImageList(torch.stack(padded), sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], *_: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        return result


class BalancedSampler:
    """Draws anchors or regions for the losses: a share of positives, the rest negatives.

    torchvision's BalancedPositiveNegativeSampler with a generator in place of the global one.

    Attributes:
        generator: of the CPU, whatever device the labels are on.
    """

    def __init__(self, count: int, positive_fraction: float) -> None:
        self.count = count
        self.positive_fraction = positive_fraction
        self.generator: torch.Generator | None = None

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Args:
            labels: per image (A,): -1 ignored, 0 negative, 1 and above positive.

        Returns:
            Two lists of (A,) uint8, which positives and which negatives were drawn.
        """
        drawn = [self._draw(of_image) for of_image in labels]
        return [positive for positive, _ in drawn], [negative for _, negative in drawn]

    def _draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        positive = torch.where(labels >= 1)[0]
        negative = torch.where(labels == 0)[0]
        num_positive = min(len(positive), int(self.count * self.positive_fraction))
        num_negative = min(len(negative), self.count - num_positive)
        return (
            self._some(positive, num_positive, labels),
            self._some(negative, num_negative, labels),
        )

    def _some(self, candidates: Tensor, count: int, labels: Tensor) -> Tensor:
        order = torch.randperm(len(candidates), generator=self.generator)[:count]
        chosen = torch.zeros_like(labels, dtype=torch.uint8)
        chosen[candidates[order.to(candidates.device)]] = 1
        return chosen
