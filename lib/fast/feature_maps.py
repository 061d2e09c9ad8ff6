"""The maps of a frozen backbone for a feature pyramid, computed once for every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lib.fast.feature_cache import FeatureCache
from lib.modeling.backbones import Backbone


class PackedMaps(Backbone):
    """Some maps of a backbone as one map of a single cell, the form that a FeatureCache keeps.

    Args:
        levels: which maps of `body`.
    """

    def __init__(self, body: Backbone, levels: Sequence[int]) -> None:
        super().__init__([body.layers[n] for n in levels])
        self.body, self.levels, self.mean, self.std = body, levels, body.mean, body.std
        self.train(body.training)

    def compute(self, images: Tensor) -> Iterator[Tensor]:
        maps = list(self.body.compute(images))
        packed = [maps[n].permute(0, 2, 3, 1).flatten(1) for n in self.levels]
        yield torch.cat(packed, 1)[..., None, None]  # (B, all values, 1, 1)

    def unpack(self, packed: Tensor, size: Sequence[int]) -> list[Tensor]:
        """The maps, (B, channels, h/stride, w/stride) each, of images of `size` (h, w)."""
        shapes = [(-(-size[0] // s), -(-size[1] // s), c) for c, s in self.layers]
        parts = packed.flatten(1).split([h * w * c for h, w, c in shapes], 1)
        return [
            part.view(-1, *shape).permute(0, 3, 1, 2)
            for part, shape in zip(parts, shapes, strict=True)
        ]


class KeptMaps:
    """Stands in the place of `feature_maps` of a backbone that is frozen as a whole.

    Training takes the maps from a cache; levels that are not kept are None there.

    Args:
        kept: made for the PackedMaps of the same weights and levels.
    """

    def __init__(self, packed: PackedMaps, kept: FeatureCache) -> None:
        self.packed, self.kept = packed, kept

    def __call__(self, images: Tensor) -> list[Tensor | None]:
        body = self.packed.body
        if not body.training:
            return type(body).feature_maps(body, images)
        maps = self.packed.unpack(self.kept(self.packed, images), images.shape[-2:])
        by_level = dict(zip(self.packed.levels, maps, strict=True))
        return [by_level.get(n) for n in range(len(body.layers))]
