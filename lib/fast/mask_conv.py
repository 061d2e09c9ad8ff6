"""The convolution of MaskFuse at half its price, for CPUs.

MaskFuse convolves the pooled features x beside the masked ones, x * mask. The mask is 0 or 1, so a
cell counts either with the weights of both halves added or with those of the first half alone: one
product instead of two. The cells are sorted by their mask, multiplied with the weights of all taps
at once, and summed by the cells that receive them. Equal to the convolution up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        (P, O, size, size), under autocast in its type.
    """
    if features.is_cuda:
        masked = features * roi_masks[:, None].to(features.dtype)
        return functional.conv2d(torch.cat([features, masked], dim=1), weight, bias, padding=1)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        features, weight, bias = features.to(dtype), weight.to(dtype), bias.to(dtype)
    num, depth, size, _ = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(num * size * size, depth)
    fused = _MaskedConv.apply(rows, roi_masks.flatten(1) > 0, weight, bias, size)
    return fused.view(num, len(bias), size, size)


@dataclass(frozen=True)
class _Grid:
    """Givers and receivers among the cells of a size x size grid; cells and taps count row by row.

    A group is the cells from which the same taps stay within the grid: a corner, a side without
    its corners, or all between.
    """

    runs: tuple[tuple[slice, ...], ...]
    """Taps of every group; neighbours in one slice."""
    group: Tensor
    """(size * size,) int64, the group of a cell."""
    giver: Tensor
    """(E,) int64, cells that give, sorted by the cell that receives."""
    slot: Tensor
    """(E,) int64, tap among those of the giver's group."""
    count: Tensor
    """(size * size,) int64, how many of these every cell receives."""
    receiver: tuple[Tensor, ...]
    """For the cells of every group: (size * size, taps) int64, who receives; -1 for others."""

    def products(self, group: int, width: int) -> Iterator[tuple[slice, slice]]:
        """For every run: its rows among the weights (9 * width, D), and its columns among the
        products of a cell of the group (taps * width)."""
        stop = 0
        for run in self.runs[group]:
            start, stop = stop, stop + (run.stop - run.start) * width
            yield slice(run.start * width, run.stop * width), slice(start, stop)


@cache
def _grid(size: int) -> _Grid:
    # Of three taps in a row the last leads from the first cell out of the grid, the first from
    # the last cell.
    spans = [(int(place == size - 1), 3 - int(place == 0)) for place in range(size)]
    kinds = [(rows, columns) for rows in spans for columns in spans]  # of every cell
    groups = sorted(set(kinds))
    taps = [[3 * y + x for y in range(*rows) for x in range(*columns)] for rows, columns in groups]
    group = [groups.index(kind) for kind in kinds]
    giver, slot, count = [], [], []
    receiver = [torch.full((size * size, len(of_group)), -1) for of_group in taps]
    for cell in range(size * size):
        before = len(giver)
        for tap in range(9):
            y, x = cell // size + tap // 3 - 1, cell % size + tap % 3 - 1
            if 0 <= y < size and 0 <= x < size:
                giver.append(y * size + x)
                of_group = group[giver[-1]]
                slot.append(taps[of_group].index(tap))
                receiver[of_group][giver[-1], slot[-1]] = cell
        count.append(len(giver) - before)
    runs = tuple(_runs(*kind) for kind in groups)
    return _Grid(runs, *map(torch.tensor, (group, giver, slot, count)), tuple(receiver))


def _runs(rows: tuple[int, int], columns: tuple[int, int]) -> tuple[slice, ...]:
    if columns == (0, 3):
        return (slice(3 * rows[0], 3 * rows[1]),)
    return tuple(slice(3 * y + columns[0], 3 * y + columns[1]) for y in range(*rows))


def _by_kind(inside: Tensor, grid: _Grid) -> tuple[Tensor, list[tuple[int, bool, slice]]]:
    """Sorts the cells of some proposals, (P, cells) bool, into kinds: group, under the mask or not.

    Returns:
        (P * cells,) int64, rows by kind; group, mask and place among them of every kind.
    """
    kind = (2 * grid.group + inside).flatten()
    order = kind.argsort(stable=True)
    kinds, start = [], 0
    for number, count in enumerate(torch.bincount(kind).tolist()):
        if count:
            kinds.append((number // 2, bool(number % 2), slice(start, start + count)))
            start += count
    return order, kinds


class _MaskedConv(torch.autograd.Function):
    """(P * cells, D) rows, (P, cells) bool masks, (O, 2 D, 3, 3) weights and (O,) biases to
    (P, O, cells)."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, inside: Tensor, weight: Tensor, bias: Tensor, size: int
    ) -> Tensor:
        ctx.save_for_backward(rows, inside, weight)
        ctx.size = size
        grid, by_mask = _grid(size), _by_mask(weight)
        result = rows.new_empty((len(inside), len(bias), size * size))
        # The same memory for every block: new memory takes a tenth as long as the products.
        num = min(len(inside), _PROPOSALS_AT_ONCE)
        given = rows.new_empty((num * len(grid.giver), len(bias)))  # (cell and tap, O)
        for part, place in _blocks(inside):
            summed = _forward(rows[place], inside[part], by_mask, grid, given)
            by_channel = summed.view(-1, size * size, len(bias)).transpose(1, 2)
            torch.add(by_channel, bias[:, None], out=result[part])
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        rows, inside, weight = ctx.saved_tensors
        grid, by_mask = _grid(ctx.size), _by_mask(weight)
        grad_rows = torch.empty_like(rows)
        summed_in = torch.promote_types(weight.dtype, torch.float32)  # not in bfloat16
        grad_by_mask = [torch.zeros_like(w, dtype=summed_in) for w in by_mask]
        for part, place in _blocks(inside):
            by_row = grad[part].transpose(1, 2).flatten(0, 1)
            here = rows[place], inside[part]
            grad_rows[place] = _backward(by_row, *here, by_mask, grad_by_mask, grid)
        outside, inside = (g.view(3, 3, -1, rows.shape[1]) for g in grad_by_mask)
        grad_weight = torch.empty_like(weight)  # with the strides of the weights
        by_tap = grad_weight.permute(2, 3, 0, 1)  # (3, 3, O, 2 D)
        by_tap[..., : rows.shape[1]] = outside + inside
        by_tap[..., rows.shape[1] :] = inside
        return grad_rows, None, grad_weight, grad.sum(dim=(0, 2)), None


def _blocks(inside: Tensor) -> Iterator[tuple[slice, slice]]:
    """The proposals that are computed at a time, and their rows."""
    num, cells = inside.shape
    for start in range(0, num, _PROPOSALS_AT_ONCE):
        stop = min(start + _PROPOSALS_AT_ONCE, num)
        yield slice(start, stop), slice(start * cells, stop * cells)


def _by_mask(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(9 O, D) each: what a cell outside its mask is multiplied with, and one inside."""
    of_box, of_mask = weight.permute(2, 3, 0, 1).flatten(0, 2).chunk(2, dim=1)
    return of_box.contiguous(), of_box + of_mask


def _forward(
    rows: Tensor, inside: Tensor, by_mask: tuple[Tensor, Tensor], grid: _Grid, given: Tensor
) -> Tensor:
    """Returns the rows of the result without bias; `given` is memory for what every cell gives."""
    order, kinds = _by_kind(inside, grid)
    first = torch.empty_like(order)  # of every row: where its taps begin in `given`
    sorted_rows, end = rows[order], 0
    for group, mask, place in kinds:
        count, num_taps = place.stop - place.start, grid.receiver[group].shape[1]
        begin, end = end, end + count * num_taps
        out = given[begin:end].view(count, -1)
        for run, columns in grid.products(group, given.shape[1]):
            torch.mm(sorted_rows[place], by_mask[mask][run].T, out=out[:, columns])
        first[order[place]] = torch.arange(begin, end, num_taps)
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
    order, kinds = _by_kind(inside, grid)
    cells, result = inside.shape[1], torch.empty_like(rows)
    for group, mask, place in kinds:
        row = order[place]
        receiver = grid.receiver[group][row % cells] + (row // cells * cells)[:, None]
        of_taps = grad[receiver.flatten()].view(len(row), -1)  # (rows, taps * O)
        of_rows, total = rows[row], 0
        for run, columns in grid.products(group, grad.shape[1]):
            total = total + of_taps[:, columns] @ by_mask[mask][run]
            grad_by_mask[mask][run] += of_taps[:, columns].T @ of_rows
        result[row] = total
    return result
