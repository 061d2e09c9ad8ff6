"""Mosaics: training images put together from several, all of whose objects have a label.

Of several objects in a photograph pseudo labels usually hold one, so that a network learns to pass
over the others. A mosaic of images that show one object each is a group with a mask for every one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from lib.structures import ReadInstances

_SURE = 0.5
"""The best scored part of the images with one label; of these mosaics are made."""
_MOST = 4
"""Images of a mosaic; 2 at least."""
_SAME_CLASS = 0.7
"""Part of the mosaics whose images are all of one class: groups usually are."""
_CUT = 0.4, 0.6
"""Range of the line that divides a mosaic, as parts of its side."""


@dataclass(frozen=True)
class Mosaic:
    """The images that a mosaic is made of, and their places."""

    parts: tuple[int, ...]
    """Indices of 2 to 4 images with one label each. The mosaic has the size of the first."""
    seed: int
    """Of where it is divided and what of every image it shows."""


def draw_mosaics(
    instances: Mapping[int, Sequence[Mapping[str, Any]]], count: int, seed: int
) -> list[Mosaic]:
    """Draws mosaics of the images with one label, of which only the best scored half is taken.

    Args:
        instances: by index of the image, see `lib.refine.data.Instances`. What has no score counts
            as sure.

    Returns:
        `count` mosaics; none where fewer than two images have a single mask.
    """
    single = {
        index: of[0]
        for index, of in instances.items()
        if len(of) == 1 and not of[0].get("box_only")
    }
    order = sorted(single, key=lambda index: -single[index].get("score", 1.0))
    sure = order[: max(round(len(order) * _SURE), 2)]
    if len(sure) < 2:
        return []
    of_class: dict[int, list[int]] = {}
    for index in sure:
        of_class.setdefault(single[index]["category_id"], []).append(index)
    rng = np.random.default_rng(seed)
    mosaics = []
    for _ in range(count):
        first = sure[rng.integers(len(sure))]
        same = of_class[single[first]["category_id"]]
        among = same if len(same) > 1 and rng.random() < _SAME_CLASS else sure
        others = [index for index in among if index != first]
        number = min(int(rng.integers(2, _MOST + 1)), len(others) + 1)
        parts = rng.choice(others, number - 1, replace=False)
        mosaics.append(Mosaic((first, *map(int, parts)), int(rng.integers(2**31))))
    return mosaics


def compose(parts: Sequence[ReadInstances], seed: int) -> ReadInstances:
    """Puts images together: side by side, one beside two, or two above two.

    Every image is mirrored or not, and scaled until it fills its cell; what stands over is cut off,
    if possible outside of its object. An object of which nothing is left has an empty mask.

    Args:
        parts: 2 to 4 images with one mask each.
        seed: of all that is drawn.

    Returns:
        An image of the size and with the record of the first.
    """
    rng = np.random.default_rng(seed)
    height, width = parts[0].image.shape[:2]
    image = np.zeros((height, width, 3), np.uint8)
    masks = np.zeros((len(parts), height, width), np.uint8)
    for part, mask, cell in zip(parts, masks, _cells(len(parts), height, width, rng), strict=True):
        _fill(image, mask, cell, part, rng)
    class_idx = np.concatenate([part.class_idx for part in parts])
    return replace(parts[0], image=image, masks=masks, class_idx=class_idx, has_mask=None)


def _cells(
    count: int, height: int, width: int, rng: np.random.Generator
) -> list[tuple[slice, slice]]:
    """(rows, columns) of every cell."""
    y, x = (round(side * rng.uniform(*_CUT)) for side in (height, width))
    top, bottom, left, right = slice(0, y), slice(y, height), slice(0, x), slice(x, width)
    if count == 4:
        return [(top, left), (top, right), (bottom, left), (bottom, right)]
    one, two = (left, right) if rng.random() < 0.5 else (right, left)
    whole = slice(0, height)
    return [(whole, one), (whole, two)] if count == 2 else [(whole, one), (top, two), (bottom, two)]


def _fill(
    image: np.ndarray,
    mask: np.ndarray,
    cell: tuple[slice, slice],
    part: ReadInstances,
    rng: np.random.Generator,
) -> None:
    """Draws an image and its mask into a cell of `image` and `mask`."""
    pixels, own = part.image, part.masks[0]
    if rng.random() < 0.5:
        pixels, own = pixels[:, ::-1], own[:, ::-1]
    size = tuple(side.stop - side.start for side in cell)  # (height, width)
    if not min(size):
        return
    factor = max(to / side for to, side in zip(size, own.shape, strict=True))
    shown = []
    for axis, to in enumerate(size):
        occupied = np.flatnonzero(own.any(axis=1 - axis))
        begin, end = (occupied[0], occupied[-1] + 1) if len(occupied) else (0, own.shape[axis])
        length = min(max(round(to / factor), 1), own.shape[axis])
        start = _start(length, int(begin), int(end), own.shape[axis], rng)
        shown.append(slice(start, start + length))
    crop, area, nearest = tuple(shown), cv2.INTER_AREA, cv2.INTER_NEAREST
    image[cell] = cv2.resize(np.ascontiguousarray(pixels[crop]), size[::-1], interpolation=area)
    mask[cell] = cv2.resize(np.ascontiguousarray(own[crop]), size[::-1], interpolation=nearest)


def _start(length: int, begin: int, end: int, side: int, rng: np.random.Generator) -> int:
    """The start of a window that shows begin..end of a side if it can, else the middle of it."""
    first, last = max(0, end - length), min(side - length, begin)
    if first > last:
        return min(max((begin + end - length) // 2, 0), side - length)
    return int(rng.integers(first, last + 1))
