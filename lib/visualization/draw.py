"""Masks drawn on their image with OpenCV: instances, proposals, clusters.

Images go in and out as (H, W, 3) uint8 RGB. Small images come back enlarged by a whole factor, so
that outlines stay thin and captions can be read; nothing is ever made smaller.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from lib.prm.peaks import Peaks
from lib.structures import Clusters, Regions

Color = tuple[int, int, int]

LONG_SIDE = 512
"""Images are enlarged until their long side has at least this many pixels."""
MOST_CAPTIONS = 20
"""Of peaks: more of them would hide the picture."""
FONT = cv2.FONT_HERSHEY_SIMPLEX
DARK: Color = (20, 20, 20)
LIGHT: Color = (250, 250, 250)


def color_of(index: int) -> Color:
    """The RGB colour of a class or instance number: always the same, neighbours far apart.

    Rounds of five hues (red, amber, green, blue, violet), each round a little further on.
    """
    turn, place = divmod(index, 5)
    hue = (place + turn * 0.618034 % 1.0) / 5  # steps of the golden ratio never come back soon
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
        image: (H, W, 3) uint8 RGB; it is not changed.
        masks: (K, H, W) bool; K may be 0, empty masks are left out.
        labels: (K,) class index.
        scores: (K,); None writes no scores (ground truth).
        class_names: of every class index; without them the index is written.
        color_by: one colour per class, or per instance (by its number in `masks`).
        long_side: see LONG_SIDE.

    Returns:
        (f H, f W, 3) uint8 RGB, f the whole factor of enlargement.

    Raises:
        ValueError: masks of another size than the image, or counts that differ.
    """
    _check_masks(image, masks, labels, scores)
    canvas = enlarge(image, long_side)
    sizes = masks.sum(axis=(1, 2))
    order = [k for k in np.argsort(-sizes, kind="stable").tolist() if sizes[k]]
    large = {k: _enlarge_mask(masks[k], canvas.shape[:2]) for k in order}
    colors = {k: color_of(int(labels[k]) if color_by == "class" else k) for k in order}
    for k in order:
        _tint(canvas, large[k], colors[k])
    for k in order:
        _outline(canvas, large[k], colors[k])
    taken: list[tuple[int, int, int, int]] = []
    for k in sorted(order):  # best first: they get the best places
        label = int(labels[k])
        text = class_names[label] if label < len(class_names) else str(label)
        if scores is not None:
            text += f" {scores[k]:.2f}"
        _caption(canvas, text, large[k], colors[k], taken)
    return canvas


def draw_proposals(
    image: np.ndarray,
    regions: Regions,
    proposal_idx: Sequence[int] | np.ndarray | None = None,
    long_side: int = LONG_SIDE,
) -> np.ndarray:
    """Outlines of proposals, each in a colour of its own.

    Args:
        proposal_idx: which ones; None draws the first 40.
    """
    _check_size(image, regions.size, "proposals")
    canvas = enlarge(image, long_side)
    chosen = range(min(40, regions.num_proposals)) if proposal_idx is None else proposal_idx
    for i in chosen:
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
    """Foreground clusters: tinted by the share of their proposals that cover a pixel, outlined
    where it is half of them, captioned with class and number of proposals.

    The background cluster is not drawn; without clusters the image comes back enlarged.
    """
    _check_size(image, regions.size, "clusters")
    canvas = enlarge(image, long_side)
    number, column = np.asarray(clusters.number), np.asarray(clusters.column)
    drawn = []
    for k in np.unique(number[column > 0]).tolist():
        members = number == k
        class_idx = int(column[members][0]) - 1
        share = regions.membership[members].mean(axis=0, dtype=np.float32)[regions.labels]
        share = cv2.resize(share, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        color = color_of(class_idx)
        _blend(canvas, color, 0.6 * share)
        name = class_names[class_idx] if class_idx < len(class_names) else str(class_idx)
        drawn.append((share >= 0.5, color, f"{name} x{int(members.sum())}"))
    for core, color, _ in drawn:
        _outline(canvas, core, color)
    taken: list[tuple[int, int, int, int]] = []
    for core, color, text in drawn:  # above all tints, to be read
        _caption(canvas, text, core, color, taken)
    return canvas


def draw_responses(
    image: np.ndarray,
    responses: np.ndarray,
    class_idx: Sequence[int],
    peaks: Peaks | None = None,
    class_names: Sequence[str] = (),
    long_side: int = LONG_SIDE,
) -> np.ndarray:
    """Response maps as light in the colours of their classes on the darkened image, with peaks.

    Args:
        responses: (K, h, w) float, each covering the whole image; what is below 0 is dark, the
            highest value of each map is bright.
        class_idx: (K,) class of each map.
        peaks: are marked; the strongest are captioned with class and response.
    """
    canvas = _darkened(enlarge(image, long_side))
    height, width = canvas.shape[:2]
    for response, c in zip(responses, class_idx, strict=True):
        share = np.maximum(response, 0) / max(float(response.max()), 1e-12)
        share = cv2.resize(share.astype(np.float32), (width, height))
        _blend(canvas, color_of(int(c)), 0.85 * share)
    if peaks is None:
        return canvas
    taken: list[tuple[int, int, int, int]] = []
    radius = max(4, round(max(height, width) / 90))
    strongest_first = np.argsort(-peaks.response, kind="stable").tolist()
    for rank, k in enumerate(strongest_first):
        c = int(peaks.class_idx[k])
        x = round((peaks.x[k] + 0.5) * width / peaks.size[1])
        y = round((peaks.y[k] + 0.5) * height / peaks.size[0])
        for size, color in ((radius + 2, DARK), (radius, LIGHT)):
            cv2.drawMarker(
                canvas, (x, y), color, cv2.MARKER_CROSS, 3 * size, size // 2, cv2.LINE_AA
            )
        if rank >= MOST_CAPTIONS:
            continue
        spot = np.zeros((height, width), bool)
        spot[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
        name = class_names[c] if c < len(class_names) else str(c)
        _caption(canvas, f"{name} {peaks.response[k]:.1f}", spot, color_of(c), taken)
    return canvas


def _darkened(canvas: np.ndarray) -> np.ndarray:
    """Without most of its colour and light, so that colours laid over it are seen."""
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    return np.round(0.45 * (0.3 * canvas + 0.7 * grey)).astype(np.uint8)


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


def _tint(canvas: np.ndarray, mask: np.ndarray, color: Color) -> None:
    _blend(canvas, color, mask.astype(np.float32) * 0.45)


def _blend(canvas: np.ndarray, color: Color, alpha: np.ndarray) -> None:
    """Mixes a colour in, by an (H, W) share in [0, 1]; only where it is not 0."""
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    share = alpha[window][..., None]
    mixed = canvas[window] * (1 - share) + np.array(color, np.float32) * share
    canvas[window] = np.round(mixed).astype(np.uint8)


def _outline(canvas: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """A coloured line on a wider dark one: to be seen on light and on dark ground."""
    width = max(2, round(max(canvas.shape[:2]) / 320))
    # Thinner around small objects, which would not be seen under it.
    width = max(1, min(width, round(float(mask.sum()) ** 0.5 / 25)))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, DARK, width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, color, width, cv2.LINE_AA)


def _caption(
    canvas: np.ndarray,
    text: str,
    mask: np.ndarray,
    color: Color,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Writes on a plate of the colour near the mask, where no caption in `taken` is; adds it."""
    height, width = canvas.shape[:2]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    letters = 13 * (max(height, width) / 512) ** 0.75  # pixels; a smaller share of large images
    scale = fit_text(text, letters, width - 6)
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, 1)
    plate = text_width + 6, text_height + below + 4
    x, y = _place(plate, (columns[0], rows[0], columns[-1], rows[-1]), (height, width), taken)
    taken.append((x, y, x + plate[0], y + plate[1]))
    cv2.rectangle(canvas, (x, y), (x + plate[0] - 1, y + plate[1] - 1), color, cv2.FILLED)
    cv2.rectangle(canvas, (x, y), (x + plate[0] - 1, y + plate[1] - 1), DARK, 1)
    # Luma of the plate decides between dark and light letters.
    light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 110
    ink = LIGHT if light else DARK
    cv2.putText(canvas, text, (x + 3, y + 2 + text_height), FONT, scale, ink, 1, cv2.LINE_AA)


def _place(
    plate: tuple[int, int],
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int]:
    """(x, y) for a plate of (width, height) inside the image: on top of the box, or the free
    place nearest to that around the box; on top of the box after all if nothing is free."""
    width, height = plate
    right, bottom = max(0, size[1] - width), max(0, size[0] - height)
    top, left = box[1] - height, box[0]
    spots = [
        (int(np.clip(x, 0, right)), int(np.clip(y, 0, bottom)))
        for x in (left, (left + box[2] - width) // 2, box[2] - width)
        for y in range(top - 3 * height, box[3] + 3 * height, max(1, height // 2))
    ]
    spots.sort(key=lambda spot: abs(spot[0] - left) + abs(spot[1] - top))
    for x, y in spots:
        if all(
            x >= x2 or y >= y2 or x + width <= x1 or y + height <= y1 for x1, y1, x2, y2 in taken
        ):
            return x, y
    return spots[0]


def fit_text(text: str, height: float, width: float) -> float:
    """The scale of FONT that gives capitals of `height` px, or less so that `width` is kept."""
    (text_width, text_height), _ = cv2.getTextSize(text, FONT, 1.0, 1)
    return max(0.3, min(height / max(1, text_height), width / max(1, text_width)))


def _check_masks(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray | None,
) -> None:
    if masks.ndim != 3:
        raise ValueError(f"masks of shape {masks.shape}, expected (K, H, W)")
    _check_size(image, masks.shape[1:], "masks")
    if len(labels) != len(masks) or (scores is not None and len(scores) != len(masks)):
        count = "no" if scores is None else len(scores)
        raise ValueError(f"{len(masks)} masks with {len(labels)} labels and {count} scores")


def _check_size(image: np.ndarray, size: Sequence[int], what: str) -> None:
    if tuple(size) != image.shape[:2]:
        raise ValueError(
            f"the {what} are {size[0]}x{size[1]} (height x width), "
            f"the image {image.shape[0]}x{image.shape[1]}"
        )
