"""Peaks of class response maps, the points where the PRM sees an object of a class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from lib.config import PRMConfig
from lib.data.points import Points
from lib.prm.network import PeakResponseNet

_MAPS_TOGETHER = 8
"""Maps whose peaks a CPU finds at a time: so many stay in its cache."""


@dataclass(frozen=True, eq=False)
class Peaks:
    """Points of one image, each with a class: peaks of response maps, or annotated points."""

    size: tuple[int, int]
    """(height, width) of the map that the positions belong to."""
    class_idx: np.ndarray
    """(K,) int64, 0..C-1."""
    y: np.ndarray
    """(K,) int64, 0..height-1."""
    x: np.ndarray
    """(K,) int64, 0..width-1."""
    response: np.ndarray
    """(K,) float32."""
    fallback: np.ndarray
    """(K,) bool; True where the class had no peak above the threshold."""

    def __len__(self) -> int:
        return len(self.class_idx)

    def take(self, idx: np.ndarray) -> Self:
        """The peaks of these numbers, in that order."""
        names = ("class_idx", "y", "x", "response", "fallback")
        return replace(self, **{name: getattr(self, name)[idx] for name in names})


def peak_mask(response: Tensor) -> Tensor:
    """Mask of the cells that are peaks.

    A peak is a maximum of its 3x3 window and not below the lower median of its map. Of equal
    maxima in one window only the first in reading order counts, so every map has a peak.

    Args:
        response: (B, C, h, w) float32.

    Returns:
        (B, C, h, w) bool.
    """
    maps = response.detach().flatten(0, 1)
    some = _MAPS_TOGETHER if maps.device.type == "cpu" else max(len(maps), 1)
    return torch.cat([_peaks_of(part) for part in maps.split(some)]).view(response.shape)


def _peaks_of(maps: Tensor) -> Tensor:
    """`peak_mask` for (N, h, w), by comparing every cell with its eight neighbours."""
    height, width = maps.shape[1:]
    around = F.pad(maps, (1, 1, 1, 1), value=-torch.inf)
    peaks = maps >= maps.flatten(1).median(dim=1).values[:, None, None]
    for y, x in itertools.product(range(3), range(3)):
        if (y, x) != (1, 1):
            neighbour = around[:, y : y + height, x : x + width]
            peaks &= maps > neighbour if (y, x) < (1, 1) else maps >= neighbour
    return peaks


def class_scores(response: Tensor) -> Tensor:
    """Mean response of every map's peaks, the logit of the class for the whole image.

    The gradient goes to the peaks alone, in equal parts.

    Args:
        response: (B, C, h, w) float32.

    Returns:
        (B, C) float32.
    """
    peaks = peak_mask(response).flatten(2).to(response.dtype)
    total = response.flatten(2)[:, :, None] @ peaks[..., None]  # (B, C, 1, 1)
    return total[..., 0, 0] / peaks.sum(dim=2)


def find_peaks(response: Tensor) -> Peaks:
    """All peaks of one image, by class and then in reading order.

    Args:
        response: (C, h, w) float32.
    """
    found = peak_mask(response[None])[0].nonzero()  # (K, 3): class, y, x
    class_idx, y, x = found.cpu().numpy().T
    values = response.detach()[tuple(found.T)].cpu().numpy()
    height, width = response.shape[1:]
    return Peaks((height, width), class_idx, y, x, values, np.zeros(len(values), bool))


def select_peaks(peaks: Peaks, image_labels: np.ndarray, settings: PRMConfig) -> Peaks:
    """The peaks to group clusters around, in ascending order of response.

    For every class of the image: all peaks with a response above the threshold (not at it), or the
    highest one if there are none. See docs/specification.md.

    Args:
        image_labels: (C,) in {0, 1}.
        settings: with `peak_thresh`, or in its place `peak_thresh_relative`: a fraction of the
            class's highest response that a peak must reach (for responses on another scale).
    """
    relative_thresh = settings.peak_thresh_relative
    kept, fallback = [], np.zeros(len(peaks), bool)
    for c in np.flatnonzero(image_labels):
        of_class = np.flatnonzero(peaks.class_idx == c)
        if not len(of_class):
            continue
        response = peaks.response[of_class]
        if relative_thresh is None:
            above = response > settings.peak_thresh
        else:
            above = response >= relative_thresh * response.max()
        if not above.any():
            above = np.arange(len(response)) == response.argmax()
            fallback[of_class[above]] = True
        kept.append(of_class[above])
    idx = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    ascending = idx[np.argsort(peaks.response[idx], kind="stable")]
    return replace(peaks, fallback=fallback).take(ascending)


def peaks_from_points(points: Points, size: tuple[int, int]) -> Peaks:
    """Annotated points in place of peaks (CIM-p), in the order of the file.

    Args:
        size: (height, width) of the image.
    """
    x, y = points.xy.astype(np.int64).T
    return Peaks(
        size=size,
        class_idx=points.class_idx,
        y=y,
        x=x,
        response=points.confidence.astype(np.float32),
        fallback=np.zeros(len(x), bool),
    )


def peak_response_maps(net: PeakResponseNet, image: Tensor, peaks: Peaks) -> Tensor:
    """Pixels that each peak responds to, for drawing (Zhou et al., CVPR 2018, section 3.3).

    The gradient of a peak's response with respect to the image, where every convolution passes
    its gradient down in proportion to `input * max(weight, 0)`.

    Args:
        net: in evaluation mode.
        image: (1, 3, S, S) float32, normalised.
        peaks: of this net's response to this image.

    Returns:
        (K, S, S) float32, not negative, each of sum 1 (or all 0 if nothing reaches the image).
    """
    maps = image.new_zeros((len(peaks), *image.shape[2:]))
    with torch.enable_grad(), _top_down_convolutions(net):
        image = image.detach().requires_grad_()
        response = net(image)[0]
        for k in range(len(peaks)):
            peak = response[peaks.class_idx[k], peaks.y[k], peaks.x[k]]
            (gradient,) = torch.autograd.grad(peak, image, retain_graph=True)
            maps[k] = gradient[0].sum(dim=0).clamp(min=0)
    total = maps.sum(dim=(1, 2), keepdim=True)
    return torch.where(total > 0, maps / total, 0)


@contextmanager
def _top_down_convolutions(net: nn.Module) -> Iterator[None]:
    hooks = [
        module.register_forward_hook(
            lambda conv, args, output: _TopDownConv.apply(args[0], conv, output.shape[2:])
        )
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _TopDownConv(torch.autograd.Function):
    """A convolution whose backward pass distributes by positive evidence."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, features: Tensor, conv: nn.Conv2d, size: tuple[int, int]
    ) -> Tensor:
        ctx.pads = _same_padding(conv, features.shape[2:], size)
        # PARITY: the input is made positive by its lowest value over the whole tensor.
        positive = F.pad(features - features.min(), ctx.pads)
        weight = conv.weight.clamp(min=0)
        where = (conv.stride, conv.padding, conv.dilation, conv.groups)
        total = F.conv2d(positive, weight, None, *where)
        ctx.save_for_backward(positive, weight, total)
        ctx.where = where
        return F.conv2d(F.pad(features, ctx.pads), conv.weight, conv.bias, *where)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        positive, weight, total = ctx.saved_tensors
        share = torch.where(total > 1e-10, gradient / total, 0)
        spread = nn.grad.conv2d_input(positive.shape, weight, share, *ctx.where)
        return F.pad(positive * spread, [-pad for pad in ctx.pads]), None, None


def _same_padding(conv: nn.Conv2d, before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Zeros (left, right, top, bottom) that a convolution adds by itself, as TensorFlow's do.

    Args:
        before, after: (height, width) of its input and of its output.
    """
    pads = []
    for axis in (1, 0):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        needed = (after[axis] - 1) * conv.stride[axis] + reach - before[axis]
        missing = max(needed - 2 * conv.padding[axis], 0)
        pads += [missing // 2, missing - missing // 2]
    return pads
