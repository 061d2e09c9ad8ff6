"""Lossless encoding of an image's mask proposals; the boxes and small masks for pooling.

Pixels that lie in exactly the same proposals form one region. A label image of the regions and a
P x R table of memberships hold all P masks bit for bit in a fraction of their size, and make every
overlap a matrix product over regions instead of pixels (docs/specification.md#proposals).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lib.proposals import _regions
from lib.structures import Proposals, Regions


def encode(masks: np.ndarray) -> Regions:
    """Finds the regions of P masks, exactly: keys with equal hashes are compared.

    Args:
        masks: (P, H, W) bool, or numbers of which everything but 0 is inside. P may be 0; masks
            may be empty, full, equal or overlap in any way.

    Returns:
        Regions numbered by their first pixel in reading order; `masks()` gives the input back.

    Raises:
        ValueError: `masks` is not (P, H, W) with H and W at least 1.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        raise ValueError(f"masks have shape {masks.shape}, expected (P, H, W) with H, W >= 1")
    return encode_parts([masks], masks.shape[1:])


def encode_parts(parts: Iterable[np.ndarray], size: tuple[int, int]) -> Regions:
    """As `encode`, of many masks that need not be in memory together.

    Args:
        parts: (64, H, W) masks each, the last any number of them.
        size: (H, W).
    """
    keys, num_proposals, num_pixels = [], 0, size[0] * size[1]
    for masks in parts:
        masks = np.ascontiguousarray(masks if masks.dtype == bool else masks != 0)
        keys.append(_regions.pack_memberships(masks.view(np.uint8).reshape(len(masks), num_pixels)))
        num_proposals += len(masks)
    keys = keys[0] if len(keys) == 1 else np.concatenate(keys, axis=1)
    labels, first, areas = _regions.number_keys(keys)
    bits = np.unpackbits(keys[first], axis=1, count=num_proposals, bitorder="little")
    membership = np.ascontiguousarray(bits.T).view(bool)
    return Regions(labels=labels.reshape(size), membership=membership, areas=areas)


def encode_unions(labels: np.ndarray, membership: np.ndarray) -> Regions:
    """Regions of proposals that are already unions of cells, for example of superpixels.

    The same result as encoding their masks, without making the masks.

    Args:
        labels: (H, W) int, the cell of every pixel, 0..K-1. Cells without pixels are allowed.
        membership: (P, K) bool, which cells a proposal is made of.
    """
    num_proposals, num_cells = membership.shape
    cells = np.ascontiguousarray(membership).view(np.uint8)
    keys = _regions.pack_memberships(cells.reshape(num_proposals, num_cells))
    same, _, _ = _regions.number_keys(keys)
    merged = same[labels].reshape(-1)
    # Numbered again, by first pixel, so that the encoding of given masks is one and only one.
    as_keys = np.ascontiguousarray(merged.astype(np.int64)).view(np.uint8).reshape(-1, 8)
    numbers, first, areas = _regions.number_keys(as_keys)
    representative = labels.reshape(-1)[first]
    return Regions(
        labels=numbers.reshape(labels.shape),
        membership=np.ascontiguousarray(membership[:, representative]),
        areas=areas,
    )


def select(regions: Regions, proposal_idx: np.ndarray) -> Regions:
    """Regions of the chosen proposals alone, in the given order."""
    return encode_unions(regions.labels, regions.membership[proposal_idx])


def mask_areas(regions: Regions) -> np.ndarray:
    """(P,) int64, pixels of every proposal."""
    return regions.membership @ regions.areas


def proposals_from_regions(regions: Regions) -> Proposals:
    """Adds to P proposals what the network pools with (docs/specification.md#proposals).

    Returns:
        `boxes`: (P, 4) float32 (xmin, ymin, xmax + 1, ymax + 1), then clipped to [0, W-1] x
        [0, H-1]; so a mask in the last column alone has a box of no width, an empty mask the box
        (0, 0, 0, 0).
        `roi_masks`: (P, 7, 7) bool, the masks inside their unclipped boxes by nearest neighbour;
        all False for an empty mask. Cell i of a side of n pixels is source pixel
        floor((i + 0.5) * n / 7), computed in integers. Pillow's NEAREST takes the same but at
        exact ties, where it depends on rounding.
    """
    labels = np.ascontiguousarray(regions.labels, dtype=np.int32)
    inside = np.ascontiguousarray(regions.membership, dtype=bool).view(np.uint8)
    extents = _regions.extents(labels, inside)
    outer = extents + np.array([0, 0, 1, 1], np.int32)
    outer[extents[:, 2] < 0] = 0
    height, width = regions.size
    limit = np.array([width - 1, height - 1, width - 1, height - 1], np.int32)
    return Proposals(
        regions=regions,
        boxes=np.minimum(outer, limit).astype(np.float32),
        roi_masks=_regions.sampled_masks(labels, inside, extents, 7).view(bool),
    )


def proposals_from_masks(masks: np.ndarray) -> Proposals:
    """`encode` and `proposals_from_regions` in one."""
    return proposals_from_regions(encode(masks))
