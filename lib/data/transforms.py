"""Turns a decoded image into the network's input: mirror, resize, normalise
(docs/specification.md#input).

An image is mirrored before it is resized, and the boxes with it, at the image's own size.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

Flip = Literal["none", "horizontal", "vertical", "both"]
FLIPS: tuple[Flip, ...] = ("none", "horizontal", "vertical", "both")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_Array = TypeVar("_Array", np.ndarray, Tensor)


def resize_long_side(image: np.ndarray, long_side: int) -> tuple[np.ndarray, float]:
    """Scales an image so that its longer side has `long_side` pixels.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (h, w, 3) uint8 and the factor, which boxes are to be multiplied by. The shorter side is
        rounded (half to even) and has at least 1 pixel.
    """
    height, width = image.shape[:2]
    factor = long_side / max(height, width)
    size = None
    if min(height, width) * factor <= 0.5:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = cv2.resize(image.astype(np.float32), size, fx=factor, fy=factor)
    # PARITY: the published system interpolates in float and lets the cast to uint8 truncate.
    return resized.astype(np.uint8), factor


def normalise(image: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 RGB to (3, h, w) float32 with ImageNet's mean and standard deviation."""
    scaled = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return ((scaled - mean) / std).contiguous()


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes around masks: a mask of one pixel (x, y) has (x, y, x + 1, y + 1).

    Args:
        masks: (N, h, w), none of them empty.

    Returns:
        (N, 4) float32 xyxy in pixels.
    """
    return masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])


def mirror_image(image: np.ndarray, flip: Flip) -> np.ndarray:
    """(H, W) or (H, W, channels), mirrored; a contiguous copy unless flip is `none`."""
    return _mirror(image, flip, axes=(0, 1))


def mirror_boxes(boxes: _Array, size: tuple[int, int], flip: Flip) -> _Array:
    """Boxes in an image of `size` (height, width) after mirroring the image.

    x1' = W - x2 - 1 and x2' = W - x1 - 1, and the same with H for y: doing it twice gives the
    boxes back, and boxes within [0, W-1] x [0, H-1] stay there.

    Args:
        boxes: (P, 4) xyxy, not changed.
    """
    horizontal, vertical = _directions(flip)
    height, width = size
    mirrored = boxes.clone() if isinstance(boxes, Tensor) else boxes.copy()
    if horizontal:
        mirrored[:, [0, 2]] = width - boxes[:, [2, 0]] - 1
    if vertical:
        mirrored[:, [1, 3]] = height - boxes[:, [3, 1]] - 1
    return mirrored


def mirror_roi_masks(roi_masks: np.ndarray, flip: Flip) -> np.ndarray:
    """(P, 7, 7) masks, rows then columns, after mirroring the image."""
    return _mirror(roi_masks, flip, axes=(1, 2))


def _mirror(array: np.ndarray, flip: Flip, axes: tuple[int, int]) -> np.ndarray:
    """Mirrors an array whose `axes` are rows and columns."""
    horizontal, vertical = _directions(flip)
    mirrored = axes[:1] * vertical + axes[1:] * horizontal
    return np.ascontiguousarray(np.flip(array, mirrored))


def _directions(flip: Flip) -> tuple[bool, bool]:
    """(mirror left and right, mirror top and bottom)"""
    if flip not in FLIPS:
        raise ValueError(f"unknown flip {flip!r}; known: {', '.join(FLIPS)}")
    return flip in ("horizontal", "both"), flip in ("vertical", "both")
