"""torchvision's Mask R-CNN (He et al., ICCV 2017) on any backbone.

Parameters have torchvision's names: a checkpoint of the ResNet-50 form also loads into
`torchvision.models.detection.maskrcnn_resnet50_fpn`. Three parts differ. Images arrive scaled and
normalised. Random draws take a generator, so that training can resume and process images in
parallel. Detections of the network keep their small masks; `detect` pastes them into the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import gcd, lcm, log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss, paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from lib.config import RefineModelConfig, RefineTestConfig
from lib.modeling.backbones import Backbone
from lib.refine.second_stage import Found, SecondStage, pyramid_levels, starting_backbone
from lib.structures import InstanceSample

_BOX_SIZE, _MASK_SIZE = 7, 14
"""Side of a pooled region, in cells, for the box head and the mask head."""
_MULTIPLE = 32
"""The sides of an image are padded to a multiple of this."""
_PASTED_AT_ONCE = 16
"""Float32 masks of the whole image in memory at a time."""
LOSSES = ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")
"""Of the region proposal network and of the heads; all have the weight 1."""


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al., CVPR 2017) on a backbone.

    Uses the backbone's last layer of every stride of at least `finest`; the coarsest level is
    pooled from the one before.

    Args:
        norms: adds a group norm to each of the pyramid's convolutions.

    Attributes:
        out_channels: channels of every level.
        strides: of every level, in pixels.

    Raises:
        ValueError: the strides do not double from level to level.
    """

    def __init__(self, body: Backbone, channels: int, finest: int = 4, norms: bool = False) -> None:
        super().__init__()
        self.body = body
        layers = body.layers
        self.levels = pyramid_levels(body, finest)
        strides = [layers[n].stride for n in self.levels]
        self.fpn = FeaturePyramidNetwork(
            [layers[n].channels for n in self.levels],
            channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=partial(nn.GroupNorm, gcd(16, channels)) if norms else None,
        )
        self.out_channels = channels
        self.strides = [*strides, 2 * strides[-1]]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body.feature_maps(images)
        return self.fpn({str(level): maps[n] for level, n in enumerate(self.levels)})


def build_mask_rcnn(
    config: RefineModelConfig,
    test: RefineTestConfig,
    num_classes: int,
    cim_backbone: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
) -> MaskRCNN:
    """Builds a Mask R-CNN and loads its backbone's weights.

    Args:
        config, test: the sections `refine.model` and `refine.test`.
        num_classes: C, without the background.
        cim_backbone, pretrained: see `starting_backbone`, also for what is raised.
    """
    if config.network_args:
        raise ValueError("refine.model.network_args: mask_rcnn has none; set its own keys")
    body = starting_backbone(config, cim_backbone, pretrained)
    backbone = Pyramid(body, config.fpn_channels, config.finest_stride, config.fpn_norms)
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
    model.transform = PaddedBatch(backbone.strides[:-1])
    model.rpn.fg_bg_sampler = BalancedSampler(config.anchors_per_image, 0.5)
    model.roi_heads.__class__ = RegionHeads  # the network makes its own: the same but for a method
    model.roi_heads.fg_bg_sampler = BalancedSampler(config.rois_per_image, 0.25)
    return model


def _roi_pool(strides: list[int], size: int) -> MultiScaleRoIAlign:
    """RoIAlign from the pyramid level that suits a region's size."""
    pool = MultiScaleRoIAlign([str(n) for n in range(len(strides))], size, sampling_ratio=2)
    # torchvision guesses the scales from the unpadded size of the first image: wrong for small
    # images, and a resumed training would differ.
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(log2(strides[0])), int(log2(strides[-1])))
    return pool


class RegionHeads(RoIHeads):
    """torchvision's heads, with a mask loss that leaves out instances without a mask.

    Targets also have `has_mask`, (N,) bool.
    """

    def has_mask(self) -> bool:
        return not self.training  # the loss is below

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], ...]:
        self.drawn = super().select_training_samples(proposals, targets)
        return self.drawn

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        found, losses = super().forward(features, proposals, image_shapes, targets)
        if self.training:
            proposals, matched, labels, _ = self.drawn
            del self.drawn
            taught = [  # in an image without instances all regions match the one that is put behind
                ((of > 0) & F.pad(target["has_mask"], (0, 1))[n]).nonzero()[:, 0]
                for of, n, target in zip(labels, matched, targets, strict=True)
            ]
            boxes = [p[n] for p, n in zip(proposals, taught, strict=True)]
            matched = [m[n] for m, n in zip(matched, taught, strict=True)]
            pooled = self.mask_roi_pool(features, boxes, image_shapes)
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(self.mask_head(pooled)),
                boxes,
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                matched,
            )
        return found, losses


class PaddedBatch(nn.Module):
    """Pads images to a batch; torchvision's transform would scale and normalise them again.

    Args:
        strides: padded sides are multiples of these, and of 32 if all of them divide 32.
    """

    def __init__(self, strides: Sequence[int] = ()) -> None:
        super().__init__()
        self.multiple = lcm(*strides) if any(_MULTIPLE % s for s in strides) else _MULTIPLE

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        sizes = [tuple(image.shape[-2:]) for image in images]
        height, width = (
            (max(side) + self.multiple - 1) // self.multiple * self.multiple  # ONNX: no -(-n // m)
            for side in zip(*sizes, strict=True)
        )
        padded = [F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2])) for i in images]
        return ImageList(torch.stack(padded), sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], *_: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        return result


class BalancedSampler:
    """Draws anchors or regions for the losses: a share of positives, the rest negatives.

    torchvision's BalancedPositiveNegativeSampler with its own generator, on the CPU.
    """

    def __init__(self, count: int, positive_fraction: float) -> None:
        self.count = count
        self.positive_fraction = positive_fraction
        self.generator: torch.Generator | None = None

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Draws from the labels of every image, (A,) with -1 ignored, 0 negative, 1.. positive.

        Returns:
            Two lists of (A,) uint8: the positives and the negatives that were drawn.
        """
        positives = [
            self._draw(one >= 1, int(self.count * self.positive_fraction)) for one in labels
        ]
        negatives = [
            self._draw(one == 0, self.count - int(drawn.sum()))
            for one, drawn in zip(labels, positives, strict=True)
        ]
        return positives, negatives

    def _draw(self, candidates: Tensor, count: int) -> Tensor:
        idx = candidates.nonzero()[:, 0]
        order = torch.randperm(len(idx), generator=self.generator)[:count]
        drawn = torch.zeros_like(candidates, dtype=torch.uint8)
        drawn[idx[order.to(idx.device)]] = 1
        return drawn


def mask_rcnn_losses(
    model: MaskRCNN, sample: InstanceSample, generator: torch.Generator
) -> dict[str, Tensor]:
    """The losses of one image, by the names in LOSSES.

    Args:
        model: from `build_mask_rcnn`, in training mode.
        generator: draws the anchors and regions of the losses.
    """
    network = getattr(model, "module", model)  # inside DistributedDataParallel
    for part in (network.rpn, network.roi_heads):
        part.fg_bg_sampler.generator = generator
    has_mask = sample.has_mask
    if has_mask is None:
        has_mask = torch.ones_like(sample.class_idx, dtype=torch.bool)
    target = {
        "boxes": sample.boxes,
        "labels": sample.class_idx + 1,
        "masks": sample.masks,
        "has_mask": has_mask,
    }
    losses = model([sample.image], [target])
    return {name: losses[f"loss_{name}"] for name in LOSSES}


def detect(
    model: MaskRCNN, image: Tensor, size: tuple[int, int], test: RefineTestConfig
) -> Iterator[Found]:
    """Detections in an image (3, h, w), best first, with masks of `size` (H, W)."""
    (found,) = model([image])
    (height, width), (h, w) = size, image.shape[-2:]
    boxes = found["boxes"] * found["boxes"].new_tensor([width / w, height / h] * 2)
    masks = pasted(found["masks"], boxes, size, test.mask_thresh)
    for label, score, mask in zip(
        found["labels"].tolist(), found["scores"].tolist(), masks, strict=True
    ):
        yield Found(label - 1, score, mask.numpy())


def pasted(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], mask_thresh: float
) -> Iterator[Tensor]:
    """(K, 1, 28, 28) probabilities in their (K, 4) boxes -> K bool masks of the whole image."""
    for start in range(0, len(masks), _PASTED_AT_ONCE):
        part = slice(start, start + _PASTED_AT_ONCE)
        whole = paste_masks_in_image(masks[part], boxes[part], size)  # (k, 1, H, W)
        yield from (whole[:, 0] > mask_thresh).cpu()


SECOND_STAGE = SecondStage(
    title="Mask R-CNN",
    build=build_mask_rcnn,
    losses=mask_rcnn_losses,
    loss_weights=dict.fromkeys(LOSSES, 1.0),
    optimizer="sgd",
    detect=detect,
    boxes=True,
)
