"""Images that cannot be used as they are stored, copied into a form in which they can."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from lib.data.images import read_image
from lib.data.tags import IMAGE_SUFFIXES
from lib.files import atomic_file

MAX_PIXELS = 50_000_000
"""Larger images are shrunk: a mask of this size takes 50 MB wherever it is drawn."""


def make_usable(path: Path, copy: Path) -> tuple[tuple[int, int], list[str]]:
    """Looks at an image; writes `copy` if it cannot be used as it is.

    Returns:
        (height, width) to be used, and what was done to it, in words.

    Raises:
        FileNotFoundError, ValueError: see `lib.data.images.read_image`; also an image that cannot
            be written in its format.
    """
    stored = _as_stored(path)
    deep = stored is not None and stored.dtype != np.uint8
    try:
        image = read_image(path)
    except ValueError as error:
        if deep and stored.dtype.kind == "f":  # whole, but not to be read in 8 bits
            image = stored
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"{error} (known: {', '.join(IMAGE_SUFFIXES)})") from None
        else:
            raise
    done = []
    if deep:
        image = _stretched(stored, path)
        done.append("of more than 8 bits, stretched to 8")
    elif stored is not None and stored.ndim == 3 and stored.shape[2] == 4:
        alpha = stored[..., 3:].astype(np.float32) / 255
        if alpha.min() < 1:
            image = np.rint(image * alpha + 255 * (1 - alpha)).astype(np.uint8)
            done.append("transparent, laid on white")
    orientation = _orientation(path)
    if orientation in _TURNS:
        image = _TURNS[orientation](image)
        done.append("turned upright (EXIF)")
    height, width = image.shape[:2]
    if height * width > MAX_PIXELS:
        factor = (MAX_PIXELS / (height * width)) ** 0.5
        size = (max(1, int(width * factor)), max(1, int(height * factor)))
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
        done.append(f"of more than {MAX_PIXELS // 10**6} million pixels, shrunk")
    if done:
        _write(copy, image)
    return image.shape[:2], done


_TURNS = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image),
}
"""What brings the pixels upright for every value of EXIF's orientation but 1."""


def _orientation(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever Pillow cannot read of an image that OpenCV has read
        return 1


def _as_stored(path: Path) -> np.ndarray | None:
    """The values of a file as they are; None for JPEG, which has no depth and no alpha to see."""
    if path.suffix.lower() in (".jpg", ".jpeg") or not path.is_file() or not path.stat().st_size:
        return None
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


def _stretched(stored: np.ndarray, path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of grey or BGR values of any depth, from darkest to brightest."""
    values = stored[..., :3] if stored.ndim == 3 else stored[..., None]
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: has pixels that are not finite; replace it")
    low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float32) - low) * np.float32(255 / max(high - low, 1e-12))
    return np.broadcast_to(np.rint(scaled).astype(np.uint8)[..., ::-1], (*values.shape[:2], 3))


# What is lost by writing an image again cannot be seen; by default more of the colour is.
_WRITE = {
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
}
_WRITE[".jpeg"] = _WRITE[".jpg"]


def _write(path: Path, image: np.ndarray) -> None:
    """Writes RGB in the format of the name's suffix."""
    suffix = path.suffix.lower()
    bgr = np.ascontiguousarray(image[..., ::-1])
    try:
        ok, content = cv2.imencode(suffix, bgr, _WRITE.get(suffix, []))
    except cv2.error:
        ok = False
    if not ok:
        raise ValueError(
            f"{path.name}: a copy that can be used cannot be written as {suffix}; convert it to PNG"
        )
    with atomic_file(path) as file:
        file.write(content.tobytes())
