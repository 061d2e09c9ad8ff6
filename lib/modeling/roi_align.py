"""RoIAlign as two matrix products, for CPUs.

A cell of RoIAlign is the mean of a grid of bilinear samples. Grid and interpolation are products of
a part along y and a part along x, so that the mean is one too: `pooled = Wy @ features @ Wx.T` with
small matrices for every box. torchvision's CPU kernel gives the same numbers (up to rounding), but
scatters the gradient sample by sample, which takes many times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import ops


def roi_align(features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """Average pooling of boxes, half-pixel aligned, with one sample per feature cell and axis.

    Args:
        features: (1, D, h, w).
        boxes: (P, 4) xyxy in pixels of the image; no gradient flows to them.
        size: cells along each side of the result.
        scale: size of the feature map over that of the image.

    Returns:
        (P, D, size, size), as `torchvision.ops.roi_align(sampling_ratio=0, aligned=True)`.
    """
    if features.is_cuda:
        return ops.roi_align(features, [boxes], size, scale, sampling_ratio=0, aligned=True)
    _, depth, height, width = features.shape
    wx = _axis_weights(boxes[:, 0], boxes[:, 2], size, scale, width)
    wy = _axis_weights(boxes[:, 1], boxes[:, 3], size, scale, height)
    flat = features[0].permute(1, 2, 0).reshape(height, width * depth)
    rows = (wy.reshape(-1, height) @ flat).view(-1, size, width, depth)  # (P, size, w, D)
    return torch.matmul(wx[:, None], rows).permute(0, 3, 1, 2)  # (P, size, size, D) before


def _axis_weights(start: Tensor, end: Tensor, size: int, scale: float, length: int) -> Tensor:
    """(P, size, length): how much every feature cell counts in every cell of a box."""
    start, end = start * scale - 0.5, end * scale - 0.5
    cell = (end - start) / size
    samples = cell.ceil()  # (P,), along this axis in every cell of the box
    most = int(samples.max()) if len(samples) else 0
    i = torch.arange(max(most, 1), dtype=start.dtype, device=start.device)
    step = cell / samples.clamp(min=1)
    offset = (i + 0.5) * step[:, None]  # (P, G)
    first = (
        start[:, None] + torch.arange(size, dtype=start.dtype, device=start.device) * cell[:, None]
    )
    place = first[:, :, None] + offset[:, None, :]  # (P, size, G)
    counts = (i < samples[:, None])[:, None] & (place >= -1) & (place <= length)
    place = place.clamp(0, length - 1)[..., None]
    index = torch.arange(length, dtype=start.dtype, device=start.device)
    tent = (1 - (place - index).abs()).clamp(min=0)  # (P, size, G, length)
    return (tent * counts[..., None]).sum(dim=2) / samples.clamp(min=1)[:, None, None]
