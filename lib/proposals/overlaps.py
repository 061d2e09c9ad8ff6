"""Exact overlaps of proposals, from regions, on the CPU or on CUDA.

The published system stores `iou` and `containment` (its asy_iou) as two P x P float16 pickles an
image; here they are computed when a sample needs them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lib.structures import Regions

_EXACT_FLOAT32 = 1 << 24
_BLOCK = 256
"""Rows of the symmetric product that are computed at a time on the CPU."""


def intersections(membership: Tensor, areas: Tensor, num_pixels: int | None = None) -> Tensor:
    """Pixels that every two proposals share.

    Args:
        membership: (P, R) bool, which regions a proposal is made of.
        areas: (R,) pixels of every region.
        num_pixels: their sum, if it is known; on a GPU asking for it waits for the device.

    Returns:
        (P, P) on the same device, whole numbers: float32 where that is exact (areas summing to
        at most 2^24, and full-precision products), otherwise float64. P may be 0.
    """
    if num_pixels is None:
        num_pixels = int(areas.sum())
    device = membership.device.type
    # Float32 products may be set to TF32 or bfloat16. (`torch.get_float32_matmul_precision` raises
    # where PyTorch's newer settings were used.)
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    exact = num_pixels <= _EXACT_FLOAT32 and backend.matmul.fp32_precision in ("none", "ieee")
    dtype = torch.float32 if exact else torch.float64
    with torch.autocast(device, enabled=False):
        inside = membership.to(dtype)
        return _symmetric_product(inside * areas.to(dtype), inside)


def overlaps(
    membership: Tensor, areas: Tensor, num_pixels: int | None = None
) -> tuple[Tensor, Tensor]:
    """IoU and containment of all pairs of proposals.

    Args:
        membership: (P, R) bool, which regions a proposal is made of.
        areas: (R,) pixels of every region.
        num_pixels: their sum, as for `intersections`.

    Returns:
        iou: (P, P) float32, `[i, j] = |i & j| / |i | j|`, symmetric.
        containment: (P, P) float32, `[i, j] = |i & j| / |j|`: how much of j lies in i (asy_iou in
            the published code). It lies in memory column by column: who contains a proposal is
            looked up more often than whom it contains.
        Both diagonals are 1, but 0 for an empty mask, which overlaps nothing.
    """
    shared = intersections(membership, areas, num_pixels)
    pixels = shared.diagonal().clone()
    # In this order nothing exceeds the image, and all is exact; in place, because at thousands of
    # proposals new memory takes longer than the arithmetic.
    union = torch.sub(pixels[:, None], shared).add_(pixels[None, :]).clamp_(min=1)
    iou = torch.div(shared, union, out=union)
    containment = shared.div_(pixels.clamp_(min=1)[:, None]).T  # what is shared is symmetric
    return iou.float(), containment.float()


def _symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T of two (P, R) matrices where that is symmetric and every sum is exact."""
    count = len(left)
    if left.device.type != "cpu" or count <= _BLOCK:
        return left @ right.T
    # The blocks right of the diagonal are mirrored: little more than half the work.
    product = left.new_empty(count, count)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        torch.mm(left[start:stop], right[start:].T, out=product[start:stop, start:])
        product[stop:, start:stop] = product[start:stop, stop:].T
    return product


def overlaps_with_masks(regions: Regions, masks: np.ndarray) -> np.ndarray:
    """IoU of the proposals with other masks of the same image.

    Args:
        regions: P proposals.
        masks: (G, H, W) bool; G may be 0.

    Returns:
        (P, G) float64; 0 where both masks are empty.

    Raises:
        ValueError: the masks are of another size than the image.
    """
    if masks.ndim != 3 or masks.shape[1:] != regions.size:
        raise ValueError(
            f"masks have shape {masks.shape}, the proposals' image is {regions.size[0]}x"
            f"{regions.size[1]} (height x width)"
        )
    labels = regions.labels.reshape(-1)
    num_regions = len(regions.areas)
    inside = [np.bincount(labels[m.reshape(-1)], minlength=num_regions) for m in masks]
    per_region = np.array(inside, np.float64).reshape(len(masks), num_regions)
    shared = regions.membership.astype(np.float64) @ per_region.T  # (P, G)
    sizes = regions.membership @ regions.areas
    union = sizes[:, None] + per_region.sum(1)[None, :] - shared
    return shared / np.maximum(union, 1)
