"""The network: an image and its mask proposals in, scores of every proposal out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.modeling.backbones import Backbone, build_backbone
from lib.modeling.heads import Heads
from lib.modeling.mask_fuse import MaskFuse
from lib.modeling.roi_align import roi_align
from lib.structures import Scores, View

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
        self.precision = torch.float32
        """Type of the products of backbone and MaskFuse; the heads always compute in float32."""
        self.proposals_chunk: int | None = None
        """RoIAlign and MaskFuse see at most so many proposals at a time. In training this is true
        of RoIAlign and the convolution, which are computed again in the backward pass."""

    def forward(self, image: Tensor, boxes: Tensor, roi_masks: Tensor) -> Scores:
        """Scores the proposals of one image.

        Args:
            image: (1, 3, h, w) float32, normalised.
            boxes: (P, 4) xyxy in pixels of `image`.
            roi_masks: (P, 7, 7) float32 in {0, 1}.
        """
        features = self._proposal_features([self._feature_maps(image)], [boxes], [roi_masks])
        return self.cls_iou_model(features)

    def score_views(self, views: Sequence[View]) -> list[Scores]:
        """Scores the proposals of several images, or of one image seen in several ways.

        The same as `forward` on each, but neighbours of one size pass the backbone together, and
        all proposals pass MaskFuse together, whose weights are many.
        """
        maps: list[Tensor] = []
        for _, same in groupby(views, key=lambda view: view.image.shape):
            maps += self._feature_maps(torch.stack([view.image for view in same])).split(1)
        boxes, masks = [view.boxes for view in views], [view.roi_masks for view in views]
        features = self._proposal_features(maps, boxes, masks)
        return [self.cls_iou_model(part) for part in features.split([len(b) for b in boxes])]

    def _feature_maps(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, D, ~h/stride, ~w/stride)."""
        with self._reduced_precision(images.device):
            return self.Conv_Body(images)

    def _proposal_features(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> Tensor:
        """What the heads score: (P of all images, hidden_dim), image by image, in their type.

        Args:
            maps: one (1, D, ~h/stride, ~w/stride) for every image.
            boxes, masks: the proposals of every image.
        """
        chunks = _chunks([len(b) for b in boxes], self.proposals_chunk)
        learns = torch.is_grad_enabled()
        parts = []
        for chunk in chunks:
            pieces = [(maps[n], boxes[n][part], masks[n][part]) for n, part in chunk]
            if not learns:
                parts.append(self._vectors(self._fuse(pieces)))
            elif len(chunks) == 1:
                parts.append(self._fuse(pieces))
            else:
                parts.append(
                    checkpoint(self._fuse, pieces, use_reentrant=False, preserve_rng_state=False)
                )
        features = torch.cat(parts) if len(parts) > 1 else parts[0]
        # The gradient of the linear layers is as large as many proposals: it is made once.
        features = self._vectors(features) if learns else features
        return features.to(self.cls_iou_model.classifier.weight.dtype)

    def _fuse(self, pieces: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Feature maps with some of their proposals to (all these proposals, channels * 49)."""
        scale = 1 / self.Conv_Body.stride
        with self._reduced_precision(pieces[0][0].device):
            pooled = [roi_align(maps, boxes, ROI_SIZE, scale) for maps, boxes, _ in pieces]
            masks = torch.cat([masks for *_, masks in pieces])
            return self.Box_Head.fuse(torch.cat(pooled), masks)  # (P, D, 7, 7) before

    def _vectors(self, fused: Tensor) -> Tensor:
        """(P, channels * 49) to (P, hidden_dim)."""
        with self._reduced_precision(fused.device):
            return self.Box_Head.seg_fc(fused)

    def _reduced_precision(self, device: torch.device) -> AbstractContextManager:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.precision)


def _chunks(counts: Sequence[int], at_most: int | None) -> list[list[tuple[int, slice]]]:
    """Deals the proposals of several images, in order, into chunks.

    Args:
        counts: proposals of every image.
        at_most: proposals in a chunk; None makes one chunk.

    Returns:
        For every chunk, of which there is at least one, the images that it takes from, and which of
        their proposals.
    """
    ends = list(accumulate(counts))
    total = ends[-1]
    size = max(total, 1) if at_most is None else at_most
    chunks = []
    for first in range(0, max(total, 1), size):
        chunk = []
        for image, (count, end) in enumerate(zip(counts, ends, strict=True)):
            begin = end - count
            part = slice(max(first - begin, 0), min(first + size - begin, count))
            if part.start < part.stop or not total:
                chunk.append((image, part))
        chunks.append(chunk)
    return chunks


def build_model(
    config: ModelConfig,
    num_classes: int,
    prm_backbone: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
) -> CIMNet:
    """Makes the network that a configuration describes, and loads its backbone's weights.

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
                "model.weights is `prm`, but there is no trained PRM: run tools/train_prm.py first"
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
