"""Draws the embedded data set: small images that are as hard for the method as real ones.

An object is a wobbly body with a head, a lighter or darker part of it, that carries a small
emblem. The emblem (colour and pattern) tells the class for sure; the hue of body and head tells it
only roughly, and bodies without an emblem lie about as clutter. So a classifier learns to look at
the emblem, and emblem and head make tidy proposals themselves, while the instance to be found is
the whole body.
Everything is drawn from the seed: no file is downloaded.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from tqdm import tqdm

from lib.files import atomic_file, read_json, write_json
from lib.proposals.rle import mask_fields

log = logging.getLogger(__name__)

CLASS_NAMES = ("ruby", "amber", "jade", "azure", "violet")
"""Class c has hue c / 5 and the emblem pattern c of `_pattern`."""
NUM_IMAGES = {"train": 400, "val": 100, "test": 200}
"""Images of each split. Nobody tunes on test."""
SIZE = 128
"""Height and width of every image."""

_RECIPE = 2
"""Raise it when anything about the pictures changes: data made by an older one are made anew."""
_BODY_HUE_JITTER = 0.12
_HEAD_OFFSET = (0.25, 0.45)
"""Of the head's centre from that of the body, in half axes of the body."""
_HEAD_SIZE = (0.5, 0.65)
"""Half axes of the head, in those of the body."""
_HEAD_CONTRAST = (0.15, 0.3)
"""Difference in HSV value between the head and the rest."""
_MIN_VISIBLE = 0.5
_MIN_EMBLEM_VISIBLE = 0.7
_ALL = slice(None)
_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE] + 0.5


@dataclass(frozen=True, eq=False)
class Scene:
    """One image of the data set with its true objects."""

    image: np.ndarray
    """(SIZE, SIZE, 3) uint8 RGB."""
    masks: np.ndarray
    """(K, SIZE, SIZE) bool, the visible pixels of each object; they are disjoint."""
    emblems: np.ndarray
    """(K, SIZE, SIZE) bool, those of them that are emblem."""
    class_idx: np.ndarray
    """(K,) int64."""


@dataclass(frozen=True, eq=False)
class _Outline:
    """A wobbly ellipse: radius 1 + sum of waves, in a frame stretched by the half axes."""

    y: float
    x: float
    half_axes: tuple[float, float]
    angle: float
    waves: np.ndarray
    """(W, 2): amplitude and phase of the waves of order 2, 3, ..."""

    def frame(self, rows: slice = _ALL, columns: slice = _ALL) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres in the outline's own directions, in pixels from its centre."""
        dy = np.arange(SIZE)[rows, None] + 0.5 - self.y
        dx = np.arange(SIZE)[columns] + 0.5 - self.x
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return cos * dx + sin * dy, cos * dy - sin * dx

    def mask(self) -> np.ndarray:
        reach = (1 + np.abs(self.waves[:, 0]).sum()) * max(self.half_axes)
        rows = slice(max(0, int(self.y - reach)), int(self.y + reach) + 1)
        columns = slice(max(0, int(self.x - reach)), int(self.x + reach) + 1)
        u, v = self.frame(rows, columns)
        u, v = u / self.half_axes[0], v / self.half_axes[1]
        radius = np.hypot(u, v)
        turned = unit = (u + 1j * v) / np.maximum(radius, 1e-9)
        rim = np.ones_like(radius)
        for amplitude, phase in self.waves:
            turned = turned * unit
            rim += amplitude * (math.cos(phase) * turned.real - math.sin(phase) * turned.imag)
        mask = np.zeros((SIZE, SIZE), bool)
        mask[rows, columns] = radius < rim
        return mask


def make_shapes(
    root: str | Path = "data", seed: int = 0, num_images: Mapping[str, int] = NUM_IMAGES
) -> bool:
    """Writes `<root>/shapes/{split}/*.png` and `<root>/shapes/annotations/{split}.json`.

    The json is COCO's, with compressed RLE of the visible pixels. The same seed gives the same
    files bit for bit, and image n of a split does not depend on how many there are. Does
    nothing where a manifest and the files' hashes say that this was done before.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: a seed below 0 or a split with less than one image.
    """
    if seed < 0 or min(num_images.values()) < 1:
        raise ValueError(
            f"the seed must be at least 0 and every split needs an image, got seed {seed} and "
            f"{dict(num_images)}"
        )
    folder = Path(root) / "shapes"
    wanted = {"recipe": _RECIPE, "seed": seed, "num_images": dict(num_images)}
    manifest = folder / "manifest.json"
    if manifest.is_file():
        found = read_json(manifest)
        hashes = found.pop("sha256", None)
        if found == wanted and hashes == _hashes(folder, num_images):
            return False
        log.warning(
            "%s: made with other settings, or changed since; making it anew. Proposals and "
            "clusters of the old images under %s are no longer right: delete them",
            folder,
            root,
        )
    for split, count in num_images.items():
        _write_split(folder, split, count, seed)
    write_json(manifest, {**wanted, "sha256": _hashes(folder, num_images)}, indent=1)
    return True


def draw_scene(rng: Generator) -> Scene:
    """Draws one image with 1-4 objects of 1-2 classes.

    Half of the images repeat a class; a quarter have objects that touch or overlap, the rest
    keep them apart; in a quarter something else lies over one of them. An arrangement in which
    less than half of an object or less than 0.7 of its emblem is to be seen is thrown away and
    drawn again. So every object can be found, every image-level label can be seen, and there
    are no tiny remains to annotate.
    """
    class_idx = _draw_classes(rng)
    touching, occluded = rng.random() < 1 / 3, rng.random() < 1 / 4
    while True:
        outlines = _arrange(len(class_idx), touching, rng)
        if outlines is None:
            continue
        scene = _paint(outlines, class_idx, occluded, rng)
        if scene is not None:
            return scene


def _draw_classes(rng: Generator) -> np.ndarray:
    first, second = rng.choice(len(CLASS_NAMES), 2, replace=False)
    if rng.random() < 0.5:
        return np.array([first, second][: rng.integers(1, 3)])
    drawn = [first, first]
    for _ in range(rng.integers(0, 3)):
        drawn.append(first if rng.random() < 0.5 else second)
    return rng.permutation(drawn)


def _arrange(count: int, touching: bool, rng: Generator) -> list[_Outline] | None:
    """Places objects apart, or the second one against the first; None where there is no room."""
    outlines: list[_Outline] = []
    covered = np.zeros((SIZE, SIZE), bool)
    for number in range(count):
        against = outlines[0] if touching and number == 1 else None
        for _ in range(30):
            outline = _draw_outline(rng, against)
            mask = outline.mask()
            overlap = (mask & covered).sum() / mask.sum()
            near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))[covered].any()
            if (0 < overlap < 0.3) if against else not near:
                break
        else:
            return None
        outlines.append(outline)
        covered |= mask
    return outlines


def _draw_outline(rng: Generator, against: _Outline | None = None) -> _Outline:
    half_axes = tuple(rng.uniform(15, 27, 2))
    margin = 0.9 * max(half_axes)
    y, x = rng.uniform(margin, SIZE - margin, 2)
    if against is not None:
        direction = rng.uniform(0, 2 * math.pi)
        distance = rng.uniform(0.7, 1.0) * (np.mean(half_axes) + np.mean(against.half_axes))
        y = np.clip(against.y + distance * math.sin(direction), margin, SIZE - margin)
        x = np.clip(against.x + distance * math.cos(direction), margin, SIZE - margin)
    return _Outline(y, x, half_axes, rng.uniform(0, math.pi), _draw_waves(rng))


def _draw_waves(rng: Generator) -> np.ndarray:
    return np.column_stack([rng.normal(0, 0.05, 4), rng.uniform(0, 2 * math.pi, 4)])


def _paint(
    outlines: list[_Outline], class_idx: np.ndarray, occluded: bool, rng: Generator
) -> Scene | None:
    """Background, clutter, objects, what lies over one of them; None where too much is hidden."""
    canvas = _draw_background(rng)
    for _ in range(rng.integers(3, 7)):
        _paint_clutter(canvas, rng)
    bodies, emblems = [], []
    owner = np.full((SIZE, SIZE), -1)
    for number, (outline, c) in enumerate(zip(outlines, class_idx, strict=True)):
        body, head = _paint_body(canvas, outline, c, rng)
        emblems.append(_paint_emblem(canvas, head, body, c, rng))
        bodies.append(body)
        owner[body] = number
    if occluded:
        target = outlines[rng.integers(len(outlines))]
        owner[_paint_occluder(canvas, target, rng)] = -1
    masks = np.stack([owner == number for number in range(len(outlines))])
    for mask, body, emblem in zip(masks, bodies, emblems, strict=True):
        if mask.sum() < _MIN_VISIBLE * body.sum():
            return None
        if (mask & emblem).sum() < _MIN_EMBLEM_VISIBLE * emblem.sum():
            return None
    return Scene(_develop(canvas, rng), masks, masks & np.stack(emblems), class_idx)


def _draw_background(rng: Generator) -> np.ndarray:
    canvas = np.empty((SIZE, SIZE, 3))
    canvas[:] = _rgb(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.3, 0.7))
    for cells, strength in ((4, 0.10), (12, 0.07), (40, 0.05)):
        canvas += strength * _noise(cells, 3, rng)
    if rng.random() < 0.35:
        angle, period = rng.uniform(0, math.pi), rng.uniform(6, 24)
        along = math.cos(angle) * _COLUMNS + math.sin(angle) * _ROWS
        wave = np.sin(2 * math.pi * along / period + rng.uniform(0, 2 * math.pi))
        canvas += rng.uniform(0.04, 0.1) * wave[..., None] * rng.uniform(0.4, 1, 3)
    return canvas


def _paint_clutter(canvas: np.ndarray, rng: Generator) -> None:
    """A body without an emblem (30%), or a plain polygon of any colour."""
    if rng.random() < 0.3:
        _paint_body(canvas, _draw_outline(rng), rng.integers(len(CLASS_NAMES)), rng)
        return
    y, x = rng.uniform(0, SIZE, 2)
    mask = _polygon(y, x, rng.uniform(6, 22), rng.uniform(4, 16), rng.integers(3, 6), rng)
    _fill(canvas, mask, _draw_colour(rng), rng)


def _paint_body(
    canvas: np.ndarray, outline: _Outline, c: int, rng: Generator
) -> tuple[np.ndarray, _Outline]:
    """Paints a body with its head, a part that is lighter or darker; returns mask and head."""
    body = outline.mask()
    hue = c / len(CLASS_NAMES) + rng.normal(0, _BODY_HUE_JITTER)
    saturation, value = rng.uniform(0.35, 0.7), rng.uniform(0.45, 0.8)
    _fill(canvas, body, _rgb(hue, saturation, value), rng)
    direction, distance = rng.uniform(0, 2 * math.pi), rng.uniform(*_HEAD_OFFSET)
    u = distance * outline.half_axes[0] * math.cos(direction)
    v = distance * outline.half_axes[1] * math.sin(direction)
    cos, sin = math.cos(outline.angle), math.sin(outline.angle)
    y, x = outline.y + sin * u + cos * v, outline.x + cos * u - sin * v
    size = rng.uniform(*_HEAD_SIZE)
    half_axes = (size * outline.half_axes[0], size * outline.half_axes[1])
    head = _Outline(y, x, half_axes, outline.angle, _draw_waves(rng))
    value += rng.uniform(*_HEAD_CONTRAST) * (1 if value < 0.6 else -1)
    _fill(canvas, body & head.mask(), _rgb(hue, saturation, value), rng)
    return body, head


def _paint_emblem(
    canvas: np.ndarray, head: _Outline, body: np.ndarray, c: int, rng: Generator
) -> np.ndarray:
    """Paints about 7% of the body's area in the middle of its head; returns the mask."""
    side = math.sqrt(0.07 * body.sum() / math.pi)
    stretch = rng.uniform(0.85, 1.15)
    half_axes = (side * stretch, side / stretch)
    emblem = _Outline(head.y, head.x, half_axes, rng.uniform(0, math.pi), np.zeros((0, 2)))
    mask = emblem.mask() & body
    hue = c / len(CLASS_NAMES) + rng.normal(0, 0.015)
    dark = _pattern(c, *emblem.frame())[mask]
    shade = _rgb(hue, 0.95, rng.uniform(0.35, 0.5))
    canvas[mask] = np.where(dark[:, None], shade, _rgb(hue, rng.uniform(0.55, 0.75), 1.0))
    return mask


def _pattern(c: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The dark pixels of an emblem of class c: stripes, rings, checks, a cross, a half."""
    if c == 0:
        return np.sin(2 * math.pi * u / 4) > 0
    if c == 1:
        return np.hypot(u, v) % 4 < 2
    if c == 2:
        return np.sin(2 * math.pi * u / 6) * np.sin(2 * math.pi * v / 6) > 0
    if c == 3:
        return np.minimum(np.abs(u), np.abs(v)) < 1.2
    return u > 0


def _paint_occluder(canvas: np.ndarray, target: _Outline, rng: Generator) -> np.ndarray:
    """Paints a polygon over the rim of an object; returns its mask."""
    direction = rng.uniform(0, 2 * math.pi)
    reach = rng.uniform(0.7, 1.0) * np.mean(target.half_axes)
    y, x = target.y + reach * math.sin(direction), target.x + reach * math.cos(direction)
    mask = _polygon(y, x, rng.uniform(14, 26), rng.uniform(5, 11), 4, rng)
    _fill(canvas, mask, _draw_colour(rng), rng)
    return mask


def _draw_colour(rng: Generator) -> np.ndarray:
    return _rgb(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.2, 0.9))


def _polygon(
    y: float, x: float, length: float, breadth: float, corners: int, rng: Generator
) -> np.ndarray:
    """A convex polygon with its corners on an ellipse, at any angle."""
    turn = rng.uniform(0, 2 * math.pi)
    at = 2 * math.pi * (np.arange(corners) + rng.uniform(-0.2, 0.2, corners)) / corners + 0.8
    u, v = length * np.cos(at), breadth * np.sin(at)
    xs = x + math.cos(turn) * u - math.sin(turn) * v
    ys = y + math.sin(turn) * u + math.cos(turn) * v
    inside = np.ones((SIZE, SIZE), bool)
    for k in range(corners):
        n = (k + 1) % corners
        inside &= (xs[n] - xs[k]) * (_ROWS - ys[k]) > (ys[n] - ys[k]) * (_COLUMNS - xs[k])
    return inside


def _fill(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, rng: Generator) -> None:
    """Paints a mask in one colour with a random texture."""
    texture = rng.uniform(0.02, 0.09) * _noise(rng.integers(8, 40), 1, rng)
    canvas[mask] = colour + texture[mask]


def _develop(canvas: np.ndarray, rng: Generator) -> np.ndarray:
    """A slight blur, pixel noise, and rounding."""
    rows = np.pad(canvas, ((1, 1), (0, 0), (0, 0)), "edge")
    canvas = 0.15 * rows[:-2] + 0.7 * canvas + 0.15 * rows[2:]
    columns = np.pad(canvas, ((0, 0), (1, 1), (0, 0)), "edge")
    canvas = 0.15 * columns[:, :-2] + 0.7 * canvas + 0.15 * columns[:, 2:]
    canvas = canvas + rng.normal(0, 0.012, canvas.shape)
    return np.rint(canvas.clip(0, 1) * 255).astype(np.uint8)


def _noise(cells: int, channels: int, rng: Generator) -> np.ndarray:
    """(SIZE, SIZE, channels) bilinear value noise of `cells` x `cells` random values."""
    at = np.linspace(0, cells - 1, SIZE)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))
    values = rng.standard_normal((channels, cells, cells))
    return np.moveaxis(weight @ values @ weight.T, 0, -1)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV to RGB, all in [0, 1]; hues outside wrap around."""
    k = (np.array([5, 3, 1]) + 6 * (hue % 1)) % 6
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    images, annotations = [], []
    code = int.from_bytes(hashlib.sha256(split.encode()).digest()[:4], "big")
    for number in tqdm(range(count), desc=f"shapes {split}", unit="image"):
        scene = draw_scene(np.random.default_rng([seed, code, number]))
        file_name = _file_name(split, number)
        png = cv2.imencode(".png", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))[1]
        with atomic_file(folder / split / file_name) as file:
            file.write(png.tobytes())
        images.append({"id": number + 1, "file_name": file_name, "height": SIZE, "width": SIZE})
        for mask, c in zip(scene.masks, scene.class_idx, strict=True):
            ids = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": int(c) + 1}
            annotations.append({**ids, **mask_fields(mask), "iscrowd": 0})
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(CLASS_NAMES)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    write_json(folder / "annotations" / f"{split}.json", content)


def _file_name(split: str, number: int) -> str:
    return f"{split}_{number + 1:05d}.png"


def _hashes(folder: Path, num_images: Mapping[str, int]) -> dict[str, str] | None:
    """One SHA-256 for all files of each split; None where one is missing."""
    hashes = {}
    for split, count in num_images.items():
        files = [folder / "annotations" / f"{split}.json"]
        files += [folder / split / _file_name(split, number) for number in range(count)]
        if not all(file.is_file() for file in files):
            return None
        digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
        hashes[split] = hashlib.sha256(digests).hexdigest()
    return hashes
