"""Masks drawn on their image with OpenCV: instances, proposals, clusters, response maps.

Images are (H, W, 3) uint8 RGB; inputs are not changed. Small ones come back enlarged by a whole
factor f, as (f H, f W, 3), so that outlines are thin and captions legible. Nothing is shrunk.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from typing import Literal

import cv2
import numpy as np

from lib.prm.peaks import Peaks
from lib.structures import Clusters, Regions

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""x, y, width, height."""

LONG_SIDE = 512
"""Images are enlarged until their long side has at least this many pixels."""
FONT = cv2.FONT_HERSHEY_SIMPLEX
DARK: Color = (20, 20, 20)
LIGHT: Color = (250, 250, 250)


def color_of(index: int) -> Color:
    """The fixed RGB colour of a class or instance number; consecutive numbers differ clearly.

    Rounds of five hues (red, amber, green, blue, violet), each round shifted a little.
    """
    turn, place = divmod(index, 5)
    hue = (place + turn * 0.618034 % 1.0) / 5  # steps of the golden ratio recur late
    saturation, value = ((0.85, 1.0), (0.5, 1.0), (0.9, 0.7))[turn % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_instances(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray | None = None,
    class_names: Sequence[str] = (),
    color_by: Literal["class", "instance"] = "class",
    long_side: int = LONG_SIDE,
) -> np.ndarray:
    """Instances as tinted areas with outlines and captions, small ones on top of large ones.

    Args:
        masks: (K, H, W) bool, best first; K may be 0, empty masks are left out.
        labels: (K,) class index.
        scores: (K,); None writes no scores (ground truth).
        class_names: of every class index; without them the index is written.
        color_by: one colour per class, or per instance (by its number in `masks`).
        long_side: see LONG_SIDE.

    Raises:
        ValueError: masks of another size than the image, or counts that differ.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks of shape {masks.shape}, expected (K, H, W)")
    _check_size(image, masks.shape[1:], "masks")
    if len(labels) != len(masks) or (scores is not None and len(scores) != len(masks)):
        count = "no" if scores is None else len(scores)
        raise ValueError(f"{len(masks)} masks with {len(labels)} labels and {count} scores")
    canvas = enlarge(image, long_side)
    sizes = masks.sum(axis=(1, 2))
    order = [k for k in np.argsort(-sizes, kind="stable").tolist() if sizes[k]]
    large = {k: _enlarge_mask(masks[k], canvas.shape[:2]) for k in order}
    colors = {k: color_of(int(labels[k]) if color_by == "class" else k) for k in order}
    for k in order:
        _blend(canvas, colors[k], large[k].astype(np.float32) * 0.45)
    for k in order:
        _outline(canvas, large[k], colors[k])
    captions = []
    for k in sorted(order):
        score = "" if scores is None else f" {scores[k]:.2f}"
        captions.append((_name(labels[k], class_names) + score, _box(large[k]), colors[k]))
    _write_captions(canvas, captions)
    return canvas


def draw_proposals(
    image: np.ndarray,
    regions: Regions,
    proposal_idx: Sequence[int] | np.ndarray,
    long_side: int = LONG_SIDE,
) -> np.ndarray:
    """Outlines of the chosen proposals, each in its own colour."""
    _check_size(image, regions.size, "proposals")
    canvas = enlarge(image, long_side)
    for i in proposal_idx:
        mask = regions.membership[i][regions.labels]
        _outline(canvas, _enlarge_mask(mask, canvas.shape[:2]), color_of(int(i)))
    return canvas


def draw_clusters(
    image: np.ndarray,
    regions: Regions,
    clusters: Clusters,
    class_names: Sequence[str] = (),
    long_side: int = LONG_SIDE,
) -> np.ndarray:
    """Foreground clusters, captioned with class and number of proposals.

    The tint shows the fraction of a cluster's proposals that cover a pixel, the outline where it
    is a half.
    """
    _check_size(image, regions.size, "clusters")
    canvas = enlarge(image, long_side)
    number, column = np.asarray(clusters.number), np.asarray(clusters.column)
    cores = []
    for k in np.unique(number[column > 0]).tolist():
        members = number == k
        class_idx = int(column[members][0]) - 1
        share = regions.membership[members].mean(axis=0, dtype=np.float32)[regions.labels]
        share = cv2.resize(share, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        color = color_of(class_idx)
        _blend(canvas, color, 0.6 * share)
        cores.append((f"{_name(class_idx, class_names)} x{members.sum()}", share >= 0.5, color))
    for _, core, color in cores:  # above all tints
        _outline(canvas, core, color)
    _write_captions(canvas, [(text, _box(core), color) for text, core, color in cores])
    return canvas


def draw_responses(
    image: np.ndarray,
    responses: np.ndarray,
    class_idx: Sequence[int],
    peaks: Peaks | None = None,
    class_names: Sequence[str] = (),
    long_side: int = LONG_SIDE,
) -> np.ndarray:
    """Response maps as light in the colours of their classes on the darkened image.

    Args:
        responses: (K, h, w) float, each covering the whole image; values below 0 are dark, the
            highest of each map is bright.
        class_idx: (K,) class of each map.
        peaks: all are marked, the 20 strongest captioned with class and response.
    """
    canvas = enlarge(image, long_side)
    height, width = canvas.shape[:2]
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    canvas = np.round(0.45 * (0.3 * canvas + 0.7 * grey)).astype(np.uint8)
    for response, c in zip(responses, class_idx, strict=True):
        share = np.maximum(response, 0) / max(float(response.max()), 1e-12)
        share = cv2.resize(share.astype(np.float32), (width, height))
        _blend(canvas, color_of(int(c)), 0.85 * share)
    if peaks is None:
        return canvas
    radius = max(4, round(max(height, width) / 90))
    captions = []
    for k in np.argsort(-peaks.response, kind="stable").tolist():
        x = round((peaks.x[k] + 0.5) * width / peaks.size[1])
        y = round((peaks.y[k] + 0.5) * height / peaks.size[0])
        for size, color in ((radius + 2, DARK), (radius, LIGHT)):
            cv2.drawMarker(
                canvas, (x, y), color, cv2.MARKER_CROSS, 3 * size, size // 2, cv2.LINE_AA
            )
        text = f"{_name(peaks.class_idx[k], class_names)} {peaks.response[k]:.1f}"
        box = x - radius, y - radius, 2 * radius + 1, 2 * radius + 1
        captions.append((text, box, color_of(int(peaks.class_idx[k]))))
    _write_captions(canvas, captions[:20])  # more would hide the picture
    return canvas


def enlarge(image: np.ndarray, long_side: int = LONG_SIDE) -> np.ndarray:
    """A copy, enlarged by the smallest whole factor that makes the long side `long_side` px."""
    factor = max(1, -(-long_side // max(image.shape[:2])))
    if factor == 1:
        return image.copy()
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)


def _enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolated before it is cut, so that the outline has no stairs."""
    if mask.shape == size:
        return mask
    soft = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return soft >= 0.5


def _name(class_idx: int, class_names: Sequence[str]) -> str:
    return class_names[class_idx] if class_idx < len(class_names) else str(class_idx)


def _box(mask: np.ndarray) -> Box:
    """Around a mask; of width and height 0 if it is empty."""
    return cv2.boundingRect(mask.astype(np.uint8))


def _blend(canvas: np.ndarray, color: Color, alpha: np.ndarray) -> None:
    """Mixes a colour in, by an (H, W) share in [0, 1]; only where it is not 0."""
    x, y, width, height = _box(alpha > 0)
    window = np.s_[y : y + height, x : x + width]
    share = alpha[window][..., None]
    mixed = canvas[window] * (1 - share) + np.array(color, np.float32) * share
    canvas[window] = np.round(mixed).astype(np.uint8)


def _outline(canvas: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """A coloured line on a wider dark one, visible on light and on dark ground."""
    width = max(2, round(max(canvas.shape[:2]) / 320))
    # Thinner around small objects, which it would hide.
    width = max(1, min(width, round(float(mask.sum()) ** 0.5 / 25)))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, DARK, width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, color, width, cv2.LINE_AA)


def _write_captions(canvas: np.ndarray, captions: Iterable[tuple[str, Box, Color]]) -> None:
    """Writes each text on a plate of its colour near its box, unless the box is empty.

    The first get the best places.
    """
    height, width = canvas.shape[:2]
    letters = 13 * (max(height, width) / 512) ** 0.75  # pixels; a smaller share of large images
    taken: list[Box] = []
    for text, box, color in captions:
        if not box[2]:
            continue
        scale = fit_text(text, letters, width - 6)
        (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, 1)
        plate = text_width + 6, text_height + below + 4
        x, y = _place(plate, box, canvas.shape, taken)
        taken.append((x, y, *plate))
        cv2.rectangle(canvas, taken[-1], color, cv2.FILLED)
        cv2.rectangle(canvas, taken[-1], DARK, 1)
        is_dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 110  # luma
        ink = LIGHT if is_dark else DARK
        cv2.putText(canvas, text, (x + 3, y + 2 + text_height), FONT, scale, ink, 1, cv2.LINE_AA)


def _place(
    plate: tuple[int, int], box: Box, shape: tuple[int, ...], taken: Sequence[Box]
) -> tuple[int, int]:
    """(x, y) of a plate of (width, height) inside the image: on top of the box, else the nearest
    free place around it, else on top of the box after all."""
    width, height = plate
    right, bottom = max(0, shape[1] - width), max(0, shape[0] - height)
    left, top, box_right, box_bottom = box[0], box[1] - height, box[0] + box[2], box[1] + box[3]
    spots = [
        (int(np.clip(x, 0, right)), int(np.clip(y, 0, bottom)))
        for x in (left, (left + box_right - width) // 2, box_right - width)
        for y in range(top - 3 * height, box_bottom + 3 * height, max(1, height // 2))
    ]
    spots.sort(key=lambda spot: abs(spot[0] - left) + abs(spot[1] - top))
    for x, y in spots:
        if all(
            x >= x1 + w or y >= y1 + h or x + width <= x1 or y + height <= y1
            for x1, y1, w, h in taken
        ):
            return x, y
    return spots[0]


def fit_text(text: str, height: float, width: float) -> float:
    """The scale of FONT for capitals of `height` px, or smaller ones to fit into `width` px."""
    (text_width, text_height), _ = cv2.getTextSize(text, FONT, 1.0, 1)
    return max(0.3, min(height / max(1, text_height), width / max(1, text_width)))


def _check_size(image: np.ndarray, size: Sequence[int], what: str) -> None:
    if tuple(size) != image.shape[:2]:
        raise ValueError(
            f"the {what} are {size[0]}x{size[1]} (height x width), "
            f"the image {image.shape[0]}x{image.shape[1]}"
        )
