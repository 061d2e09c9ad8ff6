"""Proposals by a library alone, to compare others with: felzenszwalb segments at five scales."""

from __future__ import annotations

import numpy as np
from skimage.segmentation import felzenszwalb

from lib.proposals import _regions
from lib.proposals.regions import encode_unions
from lib.structures import Regions

SCALES = (1500, 600, 250, 100, 40)


def felzenszwalb_segments(image: np.ndarray, max_proposals: int) -> Regions:
    """The distinct segments of all SCALES, largest scale first.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        At most `max_proposals` regions, as unions of the cells that the scales have in common.
    """
    layers = [felzenszwalb(image, scale=s, sigma=0.6, min_size=60) for s in SCALES]
    pixels = np.stack(layers, axis=-1).astype(np.int32).reshape(-1, len(layers))
    number, first, _ = _regions.number_keys(pixels.view(np.uint8))
    cells = pixels[first]  # (N, scales): the segment of every scale that a cell lies in
    members = [np.arange(column.max() + 1)[:, None] == column for column in cells.T]
    distinct = list(dict.fromkeys(row.tobytes() for rows in members for row in rows))
    chosen = np.frombuffer(b"".join(distinct[:max_proposals]), bool).reshape(-1, len(cells))
    return encode_unions(number.reshape(image.shape[:2]), chosen)
