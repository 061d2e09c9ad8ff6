"""Feature maps of a backbone that does not train, computed once for every image and view."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.modeling.backbones import Backbone

logger = logging.getLogger(__name__)


class MapMemory:
    """Feature maps by the pixels that they were computed from, as float16.

    Args:
        limit: bytes; what comes later is computed each time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._maps: dict[bytes, Tensor] = {}
        self._is_full = False

    def get(self, key: bytes) -> Tensor | None:
        return self._maps.get(key)

    def put(self, key: bytes, maps: Tensor) -> None:
        """Keeps the map (D, h, w) if there is room."""
        kept = maps.detach().half()
        size = kept.nbytes
        if self.size + size <= self.limit:
            if key not in self._maps:  # of two lanes with the same image one counts
                self.size += size
                self._maps[key] = kept
        elif not self._is_full:
            self._is_full = True
            logger.info(
                "%d feature maps of the frozen backbone fill runtime.frozen_maps_mb; the others "
                "are computed each time",
                len(self._maps),
            )


def remember_maps(backbones: Sequence[Backbone], limit: int) -> MapMemory | None:
    """Lets frozen backbones on a CPU look up maps that they have computed before.

    The maps are those of `forward`, rounded to float16.

    Args:
        backbones: replicas of one; they share the memory.
        limit: bytes, at least 1.

    Returns:
        None where a backbone trains or computes on a GPU: nothing changes then.
    """
    if not all(map(is_frozen, backbones)):
        return None
    memory = MapMemory(limit)
    for backbone in backbones:
        backbone.forward = _Remembering(backbone.forward, memory)
    return memory


def is_frozen(backbone: Backbone) -> bool:
    """Whether the backbone, on a CPU, gives the same map of the same image all through training."""
    follows = any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in backbone.modules()
    )
    parameters = list(backbone.parameters())
    trains = any(p.requires_grad for p in parameters)
    return not trains and not follows and all(p.device.type == "cpu" for p in parameters)


class _Remembering:
    """A backbone's `forward` that computes the images it has not seen."""

    def __init__(self, compute: nn.Module, memory: MapMemory) -> None:
        self.compute = compute
        self.memory = memory

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, D, ~h/stride, ~w/stride) float32."""
        keys = [_key(image) for image in images]
        found = [self.memory.get(key) for key in keys]
        new = [n for n, maps in enumerate(found) if maps is None]
        if new:
            for n, maps in zip(new, self.compute(images[new]), strict=True):
                self.memory.put(keys[n], maps)
                found[n] = maps.half()  # rounded from the first time on
        return torch.stack(found).float()


def _key(image: Tensor) -> bytes:
    digest = hashlib.blake2b(str(tuple(image.shape)).encode(), digest_size=16)
    digest.update(image.contiguous().numpy())
    return digest.digest()
