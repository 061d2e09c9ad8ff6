"""Features of frozen layers, computed once for every image, scale and flip.

The kept maps are found by the fingerprint of the very pixels that the network would see, and belong
to a frozen part by the fingerprint of its structure and weights (lib/provenance.py): an image or a
weight that has changed finds nothing and is computed. What a map is rounded to does not depend on
whether it was kept, so that resuming a training changes nothing.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lib.files import atomic_file, write_json
from lib.modeling.backbones import Backbone
from lib.parallel import free_memory
from lib.provenance import fingerprint

logger = logging.getLogger(__name__)

FOLDER = "features"
"""Under the data root."""
WORTH = 1.2
"""Features that are used less often on average are not kept."""
_HEADER = 128
"""Bytes of a file beside the features."""
_USUAL = 4
"""Gigabytes where nothing is set."""
_PROBE = 256
"""Side of the image whose features are counted for the estimate."""
_ABANDONED = 600
"""Seconds after which an unfinished file belongs to a process that was killed."""


class FeatureCache:
    """Keeps what the frozen parts of a backbone make of images.

    Args:
        backbone: whose weights count; replicas that share them may ask too.
        limit: bytes that are kept; what comes when they are full is computed each time.
        folder: of files, shared by everything trained on this data root; None keeps in memory.
        dtype: what is kept; (B, D, h, w) maps come back in the type they were computed in.
    """

    def __init__(
        self,
        backbone: Backbone,
        limit: float,
        folder: Path | None = None,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        self.backbone, self.limit, self.folder, self.dtype = backbone, limit, folder, dtype
        self.bytes = 0
        self._kept: dict[str, Tensor] = {}
        self._state: tuple[tuple[int, int], ...] | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> Self:
        return self  # lanes share it

    def __call__(self, backbone: Backbone, images: Tensor) -> Tensor:
        """`backbone(images)`; in training the gradient goes as far as the frozen part."""
        if not (frozen := self.backbone.frozen_parts()):
            return backbone(images)
        with self._lock:
            tensors = [t for part in frozen for t in (*part.parameters(), *part.buffers())]
            state = tuple((t.data_ptr(), t._version) for t in tensors)
            if state != self._state:  # of other weights than at the last call, or the first call
                self._begin(frozen)
                self._state = state
        features = [self._features(backbone, image) for image in images.split(1)]
        return backbone.rest(torch.cat(features) if len(features) > 1 else features[0])

    def _begin(self, frozen: Sequence[torch.nn.Module]) -> None:
        """Forgets the maps of other weights, in memory; finds those of these, on disk."""
        own = self.backbone
        self.made_from = {
            "network": fingerprint(repr(own), own.layers, own.mean, own.std, len(frozen)),
            "weights": fingerprint([dict(part.state_dict()) for part in frozen]),
            "dtype": str(self.dtype),
        }
        self._kept.clear()
        self.bytes = 0
        if self.folder is None:
            return
        self.own_folder = self.folder / fingerprint(self.made_from)
        for part in self.folder.glob("*/.*.part"):
            if part.stat().st_mtime < time.time() - _ABANDONED:
                part.unlink(missing_ok=True)
        self.bytes = sum(file.stat().st_size for file in self.folder.glob("*/*.npy"))

    def _features(self, backbone: Backbone, image: Tensor) -> Tensor:
        """The frozen parts' result for one image (1, 3, h, w), rounded to what is kept."""
        device = image.device.type
        reduced = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if reduced else image.dtype
        key = fingerprint(image, str(dtype))
        kept = self._find(key)
        if kept is None:
            with torch.inference_mode(False), torch.no_grad():
                features = backbone.frozen_features(image)
                kept = features.to(self.dtype)
            if not kept.isfinite().all():  # too large for float16
                return features
            kept = self._keep(key, kept)
        return kept.to(image.device, dtype)

    def _find(self, key: str) -> Tensor | None:
        if self.folder is None:
            return self._kept.get(key)
        path = self.own_folder / f"{key}.npy"
        try:
            return torch.from_numpy(np.load(path)).movedim(-1, 1)
        except FileNotFoundError:
            return None
        except (EOFError, ValueError) as error:
            logger.warning("%s: damaged (%s); computed again", path, error)
            path.unlink(missing_ok=True)
            return None

    def _keep(self, key: str, features: Tensor) -> Tensor:
        features = features.cpu()
        size = features.nbytes + _HEADER
        with self._lock:
            if self.bytes + size > self.limit and self.folder is not None:
                self._remove_others()
            if self.bytes + size > self.limit:
                return features
            self.bytes += size
        if self.folder is None:
            self._kept[key] = features
            return features
        try:
            if not (note := self.own_folder / "made_from.json").is_file():
                write_json(note, self.made_from)
            with atomic_file(self.own_folder / f"{key}.npy") as file:
                np.save(file, features.movedim(1, -1).contiguous().numpy())
        except OSError as error:
            logger.warning("%s: no more feature maps are kept (%s)", self.folder, error)
            self.limit = 0
        return features

    def _remove_others(self) -> None:
        """Makes room on disk: removes the maps of other networks and weights."""
        for other in self.folder.glob("*"):
            if other != self.own_folder:
                size = sum(file.stat().st_size for file in other.glob("*.npy"))
                shutil.rmtree(other, ignore_errors=True)
                self.bytes -= size
                logger.info("%s: removed, for maps of another network or other weights", other)


def allowed_features(
    setting: float | None, backbone: Backbone, device: torch.device | str
) -> float:
    """Gigabytes that `runtime.feature_cache_gb` means for a backbone in training mode."""
    if setting is not None:
        return setting
    on_cpu = torch.device(device).type == "cpu"
    return _USUAL if on_cpu and backbone.frozen_parts() == [backbone] else 0


def plan_features(
    backbone: Backbone, gigabytes: float, pixels: float, uses: float, root: Path
) -> FeatureCache | None:
    """A cache for a training; one line says how large it gets, where, and what it saves.

    Args:
        backbone: in training mode.
        gigabytes: may be kept at most; 0 gives None.
        pixels: of all images at all scales and flips.
        uses: how often the training looks at every one of these on average.
        root: the data root.

    Returns:
        None also where nothing is frozen in front, or hardly anything is looked at twice.
    """
    if not gigabytes:
        return None
    if not backbone.frozen_parts():
        logger.warning(
            "runtime.feature_cache_gb is %g, but %s has nothing frozen in front that could be kept",
            gigabytes,
            type(backbone).__name__,
        )
        return None
    like = next(backbone.parameters())
    with torch.no_grad():
        probe = backbone.frozen_features(like.new_zeros(1, 3, _PROBE, _PROBE))
    size = 2 * probe.numel() / _PROBE**2 * pixels
    told = (
        f"features of the frozen part: {size / 1e9:.2f} GB in float16, each used {uses:.1f} times"
    )
    if uses < WORTH:
        logger.info("%s: not kept, fewer scales or flips would repeat more", told)
        return None
    limit = 1e9 * gigabytes
    folder = None if min(size, limit) < free_memory() / 2 else root / FOLDER
    part = f"; {limit / size:.0%} of them, by runtime.feature_cache_gb" if limit < size else ""
    logger.info("%s, kept in %s%s", told, folder or "memory", part)
    return FeatureCache(backbone, limit, folder)
