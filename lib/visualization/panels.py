"""Pictures put together: titled panels side by side, contact sheets, PNG files.

Images are (H, W, 3) uint8 RGB of any size. At least one is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lib.files import atomic_file
from lib.visualization.draw import DARK, FONT, LIGHT, fit_text


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """(title, image) pairs left to right, scaled to the highest, each under its title."""
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


def captioned(title: str, image: np.ndarray, text: str, width: int) -> np.ndarray:
    """An image scaled to `width`, its title above and wrapped text below."""
    body = _to_width(image, width)
    size = width / 800
    head = np.full((round(width / 12), width, 3), LIGHT, np.uint8)
    scale = min(1.15 * size, fit_text(title, head.shape[0], width - 8))
    place = (2, round(head.shape[0] * 0.68))
    cv2.putText(head, title, place, cv2.FONT_HERSHEY_DUPLEX, scale, DARK, 2, cv2.LINE_AA)
    lines = wrap_text(text, 0.95 * size, width - 6)
    step = round(width / 19)
    foot = np.full((step * len(lines) + step, width, 3), LIGHT, np.uint8)
    for number, line in enumerate(lines, start=1):
        place = (2, round(step * (number + 0.1)))
        cv2.putText(foot, line, place, FONT, 0.95 * size, DARK, 1, cv2.LINE_AA)
    margin = width // 40
    sides = ((0, 0), (margin, margin), (0, 0))
    return np.pad(np.vstack([head, body, foot]), sides, constant_values=LIGHT[0])


def wrap_text(text: str, scale: float, width: float) -> list[str]:
    """Text in lines of at most `width` pixels, broken at spaces; a longer word stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and cv2.getTextSize(longer, FONT, scale, 1)[0][0] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def contact_sheet(
    tiles: Sequence[np.ndarray], columns: int = 4, tile_width: int | None = None
) -> np.ndarray:
    """Images in rows of `columns`, each scaled to `tile_width` if given."""
    if tile_width is not None:
        tiles = [_to_width(tile, tile_width) for tile in tiles]
    rows = [_join(tiles[i : i + columns], gap=6, axis=1) for i in range(0, len(tiles), columns)]
    return _join(rows, gap=6, axis=0)


def mask_row(image: np.ndarray, masks: np.ndarray, count: int) -> list[np.ndarray]:
    """The image and `count` copies of it, each dark outside one mask; blank after the last mask."""
    dark = [np.where(mask[..., None], image, image // 5) for mask in masks[:count]]
    return [image, *dark, *[np.full_like(image, 255)] * (count - len(dark))]


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes an RGB image as PNG and creates parent folders."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    with atomic_file(path) as file:
        file.write(encoded.tobytes())


def _to_width(image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    method = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def _join(images: Sequence[np.ndarray], gap: int, axis: int) -> np.ndarray:
    """Stacks images along an axis, aligned at the top or left."""
    other = 1 - axis
    length = max(image.shape[other] for image in images)
    parts = []
    for number, image in enumerate(images):
        margins = [(0, 0), (0, 0), (0, 0)]
        margins[axis] = (gap if number else 0, 0)
        margins[other] = (0, length - image.shape[other])
        parts.append(np.pad(image, margins, constant_values=LIGHT[0]))
    return np.concatenate(parts, axis=axis)
