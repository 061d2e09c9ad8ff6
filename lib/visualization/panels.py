"""Pictures put together: titled panels side by side, contact sheets, PNG files.

Images are (H, W, 3) uint8 RGB of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lib.files import atomic_file
from lib.visualization.draw import DARK, FONT, LIGHT, fit_text


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """(title, image) pairs as one picture, left to right, each under its title.

    Images of different height are scaled to the highest. At least one panel is needed.
    """
    height = max(image.shape[0] for _, image in panels)
    bar = max(28, height // 16)
    columns = []
    for title, image in panels:
        width = round(image.shape[1] * height / image.shape[0])
        body = image if image.shape[0] == height else cv2.resize(image, (width, height))
        head = np.full((bar, body.shape[1], 3), LIGHT, np.uint8)
        scale = fit_text(title, bar * 0.6, body.shape[1] - 8)
        cv2.putText(head, title, (4, round(bar * 0.7)), FONT, scale, DARK, 1, cv2.LINE_AA)
        columns.append(np.vstack([head, body]))
    return _join(columns, gap=4, axis=1)


def contact_sheet(
    tiles: Sequence[np.ndarray], columns: int = 4, tile_width: int | None = None
) -> np.ndarray:
    """Images in rows of `columns` on light paper, in reading order. At least one is needed.

    Args:
        tile_width: scales every image to this width; None keeps their sizes.
    """
    if tile_width is not None:
        tiles = [_to_width(tile, tile_width) for tile in tiles]
    rows = [_join(tiles[i : i + columns], gap=6, axis=1) for i in range(0, len(tiles), columns)]
    return _join(rows, gap=6, axis=0)


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes an RGB image as PNG; parent folders are made."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    with atomic_file(path) as file:
        file.write(encoded.tobytes())


def _to_width(image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    shrink = width < image.shape[1]
    method = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def _join(images: Sequence[np.ndarray], gap: int, axis: int) -> np.ndarray:
    """Stacks images of any size along an axis, at the top or left of the paper between them."""
    other = 1 - axis
    length = max(image.shape[other] for image in images)
    parts = []
    for number, image in enumerate(images):
        margins = [(0, 0), (0, 0), (0, 0)]
        margins[axis] = (gap if number else 0, 0)
        margins[other] = (0, length - image.shape[other])
        parts.append(np.pad(image, margins, constant_values=LIGHT[0]))
    return np.concatenate(parts, axis=axis)
