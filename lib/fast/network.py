"""CIMNet with less work, less memory and reduced precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lib.fast.feature_cache import FeatureCache
from lib.fast.mask_conv import masked_conv
from lib.fast.roi_align import roi_align
from lib.modeling.criterion import criterion_arguments
from lib.modeling.mask_fuse import ROI_SIZE
from lib.modeling.model_builder import CIMNet
from lib.structures import Sample, Scores, View


class FastCIMNet(CIMNet):
    """Computes what a CIMNet computes, on that network's own modules and weights.

    Args:
        plain: shares all modules with this one, so that the state dicts are the same.
        precision: of the products in backbone and MaskFuse; the heads keep the type of their
            weights.
        proposals_chunk: RoIAlign and MaskFuse take at most this many proposals at a time. In
            training this holds for RoIAlign and the convolution, which the backward pass computes
            again. None takes all at once.
        kept: feature maps of the frozen part of the backbone, for training.
    """

    def __init__(
        self,
        plain: CIMNet,
        precision: torch.dtype = torch.float32,
        proposals_chunk: int | None = None,
        kept: FeatureCache | None = None,
    ) -> None:
        super().__init__(plain.Conv_Body, plain.Box_Head, plain.cls_iou_model)
        self.training = plain.training
        self.precision = precision
        self.proposals_chunk = proposals_chunk
        self.kept = kept

    def forward(self, image: Tensor, boxes: Tensor, roi_masks: Tensor) -> Scores:
        """Scores the proposals of one image; arguments as for CIMNet."""
        features = self._proposal_features([self._feature_maps(image)], [boxes], [roi_masks])
        return self.cls_iou_model(features)

    def score_views(self, views: Sequence[View]) -> list[Scores]:
        """Scores the proposals of several images, or of several views of one image.

        Neighbours of the same size pass the backbone as one batch, and all proposals pass MaskFuse
        together, so that its many weights are read once.
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
            if self.kept is not None:
                return self.kept(self.Conv_Body, images)
            return self.Conv_Body(images)

    def _proposal_features(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> Tensor:
        """(P of all images, hidden_dim), image by image, in the type of the heads.

        Args:
            maps: one (1, D, ~h/stride, ~w/stride) for every image.
            boxes, masks: the proposals of every image.
        """
        chunks = _chunks([len(b) for b in boxes], self.proposals_chunk)
        learns = torch.is_grad_enabled()
        parts = []
        fuse = self._fuse
        if learns and len(chunks) > 1:
            fuse = partial(checkpoint, fuse, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks:
            fused = fuse([(maps[n], boxes[n][part], masks[n][part]) for n, part in chunk])
            parts.append(fused if learns else self._vectors(fused))
        features = torch.cat(parts) if len(parts) > 1 else parts[0]
        if learns:  # The gradient of the linear layers is as large as many proposals: made once.
            features = self._vectors(features)
        return features.to(self.cls_iou_model.classifier.weight.dtype)

    def _fuse(self, pieces: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """RoIAlign and MaskFuse's convolution on some proposals of some images.

        Args:
            pieces: feature map, boxes and masks of each image.

        Returns:
            (P, channels * 49), P the proposals of all pieces.
        """
        scale = 1 / self.Conv_Body.stride
        conv, relu = self.Box_Head.mask_branch
        with self._reduced_precision(pieces[0][0].device):
            pooled = [roi_align(maps, boxes, ROI_SIZE, scale) for maps, boxes, _ in pieces]
            masks = torch.cat([masks for *_, masks in pieces])
            fused = masked_conv(torch.cat(pooled), masks, conv.weight, conv.bias)
            return relu(fused).flatten(1)  # (P, channels, 7, 7) before

    def _vectors(self, fused: Tensor) -> Tensor:
        """(P, channels * 49) to (P, hidden_dim)."""
        with self._reduced_precision(fused.device):
            return self.Box_Head.seg_fc(fused)

    def _reduced_precision(self, device: torch.device) -> AbstractContextManager:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.precision)


def score_images(
    model: FastCIMNet, samples: Sequence[Sample], generators: Sequence[torch.Generator]
) -> list[tuple[Any, ...]]:
    """`lib.modeling.criterion.score_image` for several images, which pass the network together."""
    return list(map(criterion_arguments, model.score_views(samples), samples, generators))


def _chunks(counts: Sequence[int], at_most: int | None) -> list[list[tuple[int, slice]]]:
    """Divides the proposals of several images, in order, into chunks.

    Args:
        counts: proposals of every image.
        at_most: proposals in a chunk; None makes one chunk.

    Returns:
        At least one chunk: the images that it takes from, and which of their proposals.
    """
    begins = list(accumulate(counts, initial=0))
    total = begins.pop()
    size = max(total, 1) if at_most is None else at_most
    return [
        [
            (image, slice(max(first - begin, 0), min(first + size - begin, count)))
            for image, (begin, count) in enumerate(zip(begins, counts, strict=True))
            if (count and begin < first + size and first < begin + count) or not total
        ]
        for first in range(0, max(total, 1), size)
    ]
