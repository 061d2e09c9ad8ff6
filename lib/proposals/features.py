"""Rates masks by the feature maps of a network that learned from image labels, not from masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from scipy import sparse

from lib.proposals import _merge
from lib.proposals.cells import Cells

FindFeatures = Callable[[np.ndarray], Sequence[np.ndarray]]
"""From (H, W, 3) uint8 RGB to (C, h, w) float32 maps of the image, the deepest last."""

NETWORK = "tf_efficientnet_lite0"
"""Of timm, with ImageNet weights: the one that the weights of the terms were chosen with."""
FEATURES_RECIPE = 1
"""Goes up with every change that gives other proposals."""


def feature_quality(cells: Cells, members: np.ndarray, maps: Sequence[np.ndarray]) -> np.ndarray:
    """(K,) how much a mask stands out, and how much it holds: the sum of three numbers around 1.

    Contrast: features that are far from the image's mean belong to what the network knows. The mean
    distance inside less that of the surroundings, in standard deviations over the image.
    Variety: parts are alike throughout, whole objects are not. The standard deviation inside of the
    first map's features, as a fraction of that in the image.
    Colour: the mean distance of the colour histograms on the two sides of the outline.

    Args:
        members: (K, N) uint8 0/1, the cells of every mask.
        maps: of the image that the cells were found in; the first and the last are used.
    """
    shares = (cells.areas / cells.areas.sum()).astype(np.float32)
    inside = members * shares  # (K, N)
    inside /= inside.sum(axis=1, keepdims=True)
    colour = _standardised(cells.colour, shares)
    a, b = cells.pairs.T
    steps = np.linalg.norm(colour[a] - colour[b], axis=1)
    _, border = _outlines(cells, members, cells.pairs, cells.lengths, steps)
    features = _standardised(_cell_means(cells, maps[0]), shares)
    squares = inside @ np.einsum("nc,nc->n", features, features)
    means = inside @ features
    variety = np.sqrt(np.maximum(squares - np.einsum("kc,kc->k", means, means), 0))
    saliency = np.linalg.norm(maps[-1] - maps[-1].mean(axis=(1, 2), keepdims=True), axis=0)
    saliency = _standardised(_cell_means(cells, saliency[None]), shares)[:, 0]
    contrast = inside @ saliency - _surroundings(cells, members, shares, saliency)
    return contrast + variety + border


def spread(cells: Cells, members: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """(K,) an order in which masks come the later the more they overlap a better one.

    Args:
        members: (K, N) uint8 0/1, the cells of every mask, best first; K is at least 1.
        quality: (K,) descending.
    """
    roots = members * np.sqrt(cells.areas).astype(np.float32)
    shared = roots @ roots.T
    areas = shared.diagonal()
    iou = shared / (areas[:, None] + areas - shared)
    repeated = np.tril(iou, -1).max(axis=1)  # IoU with the most similar better one
    return np.argsort(0.07 * repeated - quality, kind="stable")


def _surroundings(
    cells: Cells, members: np.ndarray, shares: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """(K,) mean of the cells' (N,) values around every mask; 0 where a mask has no surroundings.

    Every pair of a cell inside and one outside counts by the product of their areas.
    """
    count = len(cells)
    ends = cells.pairs.T
    near = sparse.coo_matrix((np.ones(len(cells.pairs), np.float32), ends), (count, count)).tocsr()
    near = near + near.T + sparse.eye(count, dtype=np.float32)
    a, b = sparse.triu(near @ near @ near, 1).nonzero()  # within three steps
    pairs = np.stack([a, b], axis=1).astype(np.int32)
    weights = shares[a] * shares[b] / shares.mean() ** 2
    total, mean = _outlines(cells, members, pairs, weights, (values[a] + values[b]) / 2)
    # Of pairs inside, the differences add up to nothing: what is left is inside minus outside.
    difference = weights * (values[a] - values[b])
    surplus = np.bincount(a, difference, count) - np.bincount(b, difference, count)
    return mean - (members @ surplus.astype(np.float32)) / np.maximum(total, 1e-9) / 2


def _outlines(
    cells: Cells, members: np.ndarray, pairs: np.ndarray, weights: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) sum of the weights of the pairs with one cell inside, and (K,) mean of their values."""
    weights, values = weights.astype(np.float32), values.astype(np.float32)
    found = _merge.outlines(members, pairs, weights, values, cells.areas, cells.boxes)
    return found[:, 0], found[:, 1]


def _cell_means(cells: Cells, features: np.ndarray) -> np.ndarray:
    """(N, C) of a (C, h, w) map."""
    height, width = cells.labels.shape
    channels, *size = features.shape
    numbers = np.arange(size[0] * size[1], dtype=np.float32).reshape(size)
    nearest = cv2.resize(numbers, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    place = cells.labels * np.int64(numbers.size) + nearest.astype(np.int64)
    counts = np.bincount(place.ravel(), minlength=len(cells) * numbers.size)
    counts = counts.reshape(len(cells), -1) / cells.areas[:, None]
    return counts.astype(np.float32) @ features.reshape(channels, -1).T


def _standardised(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(N, C) with a mean of 0 over the image and a mean squared length of 1."""
    values = values - shares @ values
    spread = np.sqrt(shares @ np.einsum("nc,nc->n", values, values))
    return values / max(spread, 1e-9)
