"""The convolution of MaskFuse at half its price, for CPUs.

MaskFuse convolves the pooled features x beside the masked ones, x * mask. The mask is 0 or 1, so
that a cell counts either with the weights of both halves added or with those of the first half
alone: every cell needs one product instead of two. The cells are sorted by their mask, each is
multiplied with the weights of all taps at once, and a cell of the result is the sum of what its
neighbours give it. The result is that of the convolution, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_PROPOSALS_AT_ONCE = 128
"""Bounds the memory of the products before they are summed."""


def masked_conv(features: Tensor, roi_masks: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution, padded by 1, of `torch.cat([features, features * mask], dim=1)`.

    Args:
        features: (P, D, size, size); cheapest where the channels lie together in memory. On CUDA
            this is the plain convolution.
        roi_masks: (P, size, size) in {0, 1}; no gradient flows to them.
        weight: (O, 2 D, 3, 3).
        bias: (O,).

    Returns:
        (P, O, size, size), the channels lying together in memory; under autocast in its type.
    """
    if features.is_cuda:
        masked = features * roi_masks[:, None].to(features.dtype)
        return functional.conv2d(torch.cat([features, masked], dim=1), weight, bias, padding=1)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        features, weight, bias = features.to(dtype), weight.to(dtype), bias.to(dtype)
    num, depth, size, _ = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(num * size * size, depth)
    fused = _MaskedConv.apply(rows, roi_masks.flatten(1) > 0, weight, size)
    return fused.add_(bias).view(num, size, size, len(bias)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Grid:
    """Which cells of a size x size grid give to which. Cell and tap numbers go row by row.

    The taps that stay within the grid are, in the first and the last row of cells, those of two
    rows of taps, which lie together. Taps that leave it at the sides are computed but not used.
    """

    taps: tuple[slice, ...]
    """Of the cells of every group: the first row, the last, all between."""
    group: Tensor
    """(size * size,) int64, the group of a cell."""
    giver: Tensor
    """(E,) int64, cells that give, sorted by the cell that receives."""
    slot: Tensor
    """(E,) int64, by which of the taps of the giver's group."""
    count: Tensor
    """(size * size,) int64, how many of these every cell receives."""
    receiver: tuple[Tensor, ...]
    """For the cells of every group: (size * size, taps) int64, who receives; -1 for nobody."""


@cache
def _grid(size: int) -> _Grid:
    taps = (slice(0, 6), slice(3, 9), slice(0, 9))
    row = torch.arange(size * size) // size
    group = torch.full_like(row, 2)
    group[row == 0], group[row == size - 1] = 0, 1
    if size == 1:
        group[:], taps = 0, (slice(0, 9),) * 3
    giver, slot, count = [], [], []
    receiver = [torch.full((size * size, t.stop - t.start), -1) for t in taps]
    for cell in range(size * size):
        before = len(giver)
        for tap in range(9):
            y, x = cell // size + tap // 3 - 1, cell % size + tap % 3 - 1
            if 0 <= y < size and 0 <= x < size:
                giver.append(y * size + x)
                of_group = int(group[giver[-1]])
                slot.append(tap - taps[of_group].start)
                receiver[of_group][giver[-1], slot[-1]] = cell
        count.append(len(giver) - before)
    return _Grid(taps, group, *map(torch.tensor, (giver, slot, count)), tuple(receiver))


@dataclass(frozen=True)
class _Block:
    """The cells of some proposals, sorted into kinds: (group, under the mask or not)."""

    order: Tensor
    """(rows,) int64, rows by kind."""
    kinds: list[tuple[int, bool, slice]]
    """Group, mask, and place in `order` of those that occur."""


def _block(inside: Tensor, grid: _Grid) -> _Block:
    kind = (2 * grid.group + inside).flatten()  # (P, cells) before
    order = kind.argsort(stable=True)
    kinds, start = [], 0
    for number, count in enumerate(torch.bincount(kind).tolist()):
        if count:
            kinds.append((number // 2, bool(number % 2), slice(start, start + count)))
            start += count
    return _Block(order, kinds)


class _MaskedConv(torch.autograd.Function):
    """(P * cells, D) rows, (P, cells) bool masks and (O, 2 D, 3, 3) weights to (P * cells, O)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, inside: Tensor, weight: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(rows, inside, weight)
        ctx.size = size
        grid, cells = _grid(size), size * size
        by_mask = _by_mask(weight)
        result = rows.new_empty((len(rows), weight.shape[0]))
        for start in range(0, len(inside), _PROPOSALS_AT_ONCE):
            part = inside[start : start + _PROPOSALS_AT_ONCE]
            place = slice(start * cells, (start + len(part)) * cells)
            result[place] = _forward(rows[place], part, by_mask, grid)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None]:
        rows, inside, weight = ctx.saved_tensors
        grid, cells = _grid(ctx.size), ctx.size**2
        by_mask = _by_mask(weight)
        grad_rows = torch.empty_like(rows)
        grad_by_mask = [torch.zeros_like(w, dtype=_sum_dtype(w)) for w in by_mask]
        for start in range(0, len(inside), _PROPOSALS_AT_ONCE):
            part = inside[start : start + _PROPOSALS_AT_ONCE]
            place = slice(start * cells, (start + len(part)) * cells)
            grad_rows[place] = _backward(
                grad[place], rows[place], part, by_mask, grad_by_mask, grid
            )
        outside, inside = (g.view(3, 3, -1, rows.shape[1]) for g in grad_by_mask)
        grad_weight = torch.empty_like(weight)  # with the strides of the weights
        by_tap = grad_weight.permute(2, 3, 0, 1)  # (3, 3, O, 2 D)
        by_tap[..., : rows.shape[1]] = outside + inside
        by_tap[..., rows.shape[1] :] = inside
        return grad_rows, None, grad_weight, None


def _by_mask(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(9 O, D) each: what a cell outside its mask is multiplied with, and one inside."""
    of_box, of_mask = weight.permute(2, 3, 0, 1).flatten(0, 2).chunk(2, dim=1)
    return of_box.contiguous(), of_box + of_mask


def _forward(rows: Tensor, inside: Tensor, by_mask: tuple[Tensor, Tensor], grid: _Grid) -> Tensor:
    block = _block(inside, grid)
    width = len(by_mask[0]) // 9
    sizes = [(k.stop - k.start) * _num(grid.taps[group]) for group, _, k in block.kinds]
    given = rows.new_empty((sum(sizes), width))  # (cell and tap, O)
    first = torch.empty_like(block.order)  # of every row: where its taps begin in `given`
    sorted_rows, end = rows[block.order], 0
    for (group, mask, place), size in zip(block.kinds, sizes, strict=True):
        taps = grid.taps[group]
        weight = by_mask[mask][taps.start * width : taps.stop * width]
        out = given[end : end + size].view(place.stop - place.start, -1)
        torch.mm(sorted_rows[place], weight.T, out=out)
        first[block.order[place]] = torch.arange(end, end + size, _num(taps))
        end += size
    source = first.view(inside.shape)[:, grid.giver] + grid.slot  # (P, E)
    count = grid.count.repeat(len(inside))
    return functional.embedding_bag(source.flatten(), given, count.cumsum(0) - count, mode="sum")


def _backward(
    grad: Tensor,
    rows: Tensor,
    inside: Tensor,
    by_mask: tuple[Tensor, Tensor],
    grad_by_mask: list[Tensor],
    grid: _Grid,
) -> Tensor:
    """Returns the gradient of the rows and adds that of the weights to `grad_by_mask`."""
    block = _block(inside, grid)
    width, cells = grad.shape[1], inside.shape[1]
    grad = torch.cat([grad, grad.new_zeros((1, width))])  # what nobody receives
    result = torch.empty_like(rows)
    for group, mask, place in block.kinds:
        order = block.order[place]
        receiver = grid.receiver[group][order % cells]  # (rows, taps)
        receiver = (receiver + order[:, None] // cells * cells).where(receiver >= 0, len(grad) - 1)
        of_taps = grad[receiver.flatten()].view(len(order), -1)  # (rows, taps * O)
        taps = grid.taps[group]
        of_group = slice(taps.start * width, taps.stop * width)
        result[order] = of_taps @ by_mask[mask][of_group]
        grad_by_mask[mask][of_group] += of_taps.T @ rows[order]
    return result


def _num(taps: slice) -> int:
    return taps.stop - taps.start


def _sum_dtype(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype == torch.bfloat16 else weight.dtype
