"""RoIAlign as sums over the cells of the feature map, for CPUs.

A cell of RoIAlign is the mean of a grid of bilinear samples, and so a weighted sum of a few cells
of the feature map. The weights are products of a part along y and a part along x; the rest is a
product with a sparse matrix, `embedding_bag` in PyTorch, whose gradient is one with the transposed
matrix. torchvision's CPU kernel, equal up to rounding, adds up sample by sample.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision import ops

_BOXES_AT_ONCE = 256
"""Bounds the memory that making the weights takes."""


def roi_align(features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """Average pooling of boxes, half-pixel aligned, with one sample per feature cell and axis.

    Args:
        features: (1, D, h, w).
        boxes: (P, 4) xyxy in pixels of the image; no gradient flows to them.
        size: cells along each side of the result.
        scale: size of the feature map over that of the image.

    Returns:
        (P, D, size, size), as `torchvision.ops.roi_align(sampling_ratio=0, aligned=True)`; on
        CPUs the channels lie together in memory.
    """
    if features.is_cuda:
        return ops.roi_align(features, [boxes], size, scale, sampling_ratio=0, aligned=True)
    _, depth, height, width = features.shape
    if not len(boxes):
        return features.new_zeros((0, depth, size, size))
    parts = [_samples(part, size, scale, height, width) for part in boxes.split(_BOXES_AT_ONCE)]
    cell, weight, count = map(torch.cat, zip(*parts, strict=True))
    table = features[0].permute(1, 2, 0).reshape(height * width, depth)
    pooled = _WeightedSums.apply(table, cell, weight, count)  # (P * size * size, D)
    return pooled.view(len(boxes), size, size, depth).permute(0, 3, 1, 2)


def _samples(
    boxes: Tensor, size: int, scale: float, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of the weighted sums that the cells of the boxes are.

    Returns:
        Number y * width + x of a cell of the feature map and its weight, both (N,), in the order
        of the boxes' cells, and how many terms each of these has, (P * size * size,).
    """
    y, wy = _along_axis(boxes[:, 1], boxes[:, 3], size, scale, height)  # (P, size, K)
    x, wx = _along_axis(boxes[:, 0], boxes[:, 2], size, scale, width)
    cell = (y * width)[:, :, None, :, None] + x[:, None, :, None, :]  # (P, size, size, Ky, Kx)
    weight = wy[:, :, None, :, None] * wx[:, None, :, None, :]
    counts = weight > 0
    return cell[counts], weight[counts], counts.sum(dim=(3, 4)).flatten()


def _along_axis(
    start: Tensor, end: Tensor, size: int, scale: float, length: int
) -> tuple[Tensor, Tensor]:
    """The feature cells that count in every cell of a box, and how much: (P, size, K) each.

    Their weights sum to at most 1; what lies beyond them has weight 0.
    """
    weights = _axis_weights(start, end, size, scale, length)  # (P, size, length)
    counts = weights > 0
    first = counts.to(torch.uint8).argmax(dim=2, keepdim=True)
    most = max(int(counts.sum(dim=2).max()), 1)  # they lie side by side
    place = first + torch.arange(most, device=first.device)
    index = place.clamp(max=length - 1)
    return index, weights.gather(2, index) * (place < length)


def _axis_weights(start: Tensor, end: Tensor, size: int, scale: float, length: int) -> Tensor:
    """(P, size, length): how much every feature cell counts in every cell of a box."""
    start, end = start * scale - 0.5, end * scale - 0.5
    cell = (end - start) / size
    samples = cell.ceil()  # (P,), along this axis in every cell of the box
    up_to = partial(torch.arange, dtype=start.dtype, device=start.device)
    i = up_to(max(int(samples.max()), 1))
    offset = (i + 0.5) * (cell / samples.clamp(min=1))[:, None]  # (P, G)
    first = start[:, None] + up_to(size) * cell[:, None]
    place = first[:, :, None] + offset[:, None, :]  # (P, size, G)
    counts = (i < samples[:, None])[:, None] & (place >= -1) & (place <= length)
    place = place.clamp(0, length - 1)[..., None]
    tent = (1 - (place - up_to(length)).abs()).clamp(min=0)  # (P, size, G, length)
    return (tent * counts[..., None]).sum(dim=2) / samples.clamp(min=1)[:, None, None]


class _WeightedSums(torch.autograd.Function):
    """Row n of the result is the weighted sum of the next count[n] rows of a table.

    Args:
        table: (T, D).
        row: (N,) int64, which rows; weight: (N,).
        count: (B,) int64, N in all.

    Returns:
        (B, D).
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, row: Tensor, weight: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(row, weight, count)
        ctx.num_rows = len(table)
        return _sums(table, row, weight, count)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        row, weight, count = ctx.saved_tensors
        bag = torch.repeat_interleave(count)  # (N,), the transposed matrix: rows and sums swapped
        row, order = row.sort(stable=True)
        of_row = torch.bincount(row, minlength=ctx.num_rows)
        return _sums(grad.contiguous(), bag[order], weight[order], of_row), None, None, None


def _sums(table: Tensor, row: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    start = count.cumsum(dim=0) - count
    return functional.embedding_bag(
        row, table, start, mode="sum", per_sample_weights=weight.to(table.dtype)
    )
