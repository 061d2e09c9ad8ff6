"""Reads image files whole and upright, and copies those that cannot be used as they are."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from lib.files import atomic_file, find_file
from lib.structures import ImageRecord

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib"),
    *(".gif", ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Files of a folder that are taken for images; of each the decoder reads the first picture."""
MAX_PIXELS = 50_000_000
"""Larger images are shrunk: a mask of this size takes 50 MB wherever it is drawn."""
MAX_NAME = 215
"""Bytes of a file name; file systems take 255, and what is made from an image adds to its name."""


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads an image of any format that OpenCV knows as 8-bit RGB.

    Grey images get three equal channels and an alpha channel is dropped. An EXIF orientation is
    applied, unless only the pixels as stored have the `size` asked for: COCO's sizes and
    annotations are those of the pixels as stored, most other tools' those of the upright image.
    JPEG and PNG files must be whole (OpenCV fills what is missing of a JPEG with grey and says
    nothing).

    Args:
        size: (height, width) that the image must have, if given.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not an image, or not of the given size.
    """
    content = _whole_content(path)
    orientation = _orientation(content)
    decoded = _decode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, path)
    image = _upright(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), orientation, content)
    if size is not None and image.shape[:2] != tuple(size):
        stored = _TURNS[_BACK.get(orientation, orientation)](image)
        if stored.shape[:2] != tuple(size):
            as_stored, turned = "", ""
            if orientation != 1:
                as_stored = " as stored"
                turned = ", {}x{} when turned upright (EXIF)".format(*image.shape)
            raise ValueError(
                f"{path}: the image has {stored.shape[0]}x{stored.shape[1]} pixels{as_stored} "
                f"(height x width){turned}, the json says {size[0]}x{size[1]}; take the images "
                "the json was made for"
            )
        image = stored
    return np.ascontiguousarray(image)


def read_record(record: ImageRecord, folder: Path) -> np.ndarray:
    """The pixels of an image of a data set; raises as `read_image`."""
    return read_image(folder / record.file_name, record.size)


def is_turned(path: str | Path) -> bool:
    """Whether EXIF says that the image is to be shown otherwise than it is stored."""
    return _orientation(_whole_content(path)) != 1


def check_name(name: str) -> str | None:
    """Says why a file name cannot be used, with the remedy; None if it can."""
    try:
        longest = max(len(part.encode()) for part in name.split("/"))
    except UnicodeEncodeError:
        return f"{name!a:.300}, which is not UTF-8; rename it (convmv -f latin1 -t utf8 --notest)"
    if "\0" in name:
        return f"{name!a:.300}, which no file can be called"
    if longest > MAX_NAME:
        return (
            f"{name!r:.300} of {longest} bytes; what is made from an image adds to its name, and "
            f"file systems take 255 bytes: give it a name of at most {MAX_NAME} bytes"
        )
    return None


def make_usable(path: Path, copy: Path) -> tuple[tuple[int, int], list[str]]:
    """Checks an image; writes `copy` if it cannot be used as it is.

    Returns:
        (height, width) of the image to use, and the changes made, in words.

    Raises:
        FileNotFoundError, ValueError: see `read_image`.
    """
    content = _whole_content(path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    if not content.startswith(b"\xff\xd8"):  # JPEG has no depth and no alpha to see
        flags = cv2.IMREAD_UNCHANGED
    try:
        # Of 8-bit TIFF, libtiff gives the colours multiplied by alpha.
        multiplied = content.startswith(_TIFF_MARKS)
        image, done = _in_eight_bits(_decode(content, flags, path), multiplied, path)
    except ValueError as error:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise
        raise ValueError(f"{error} (known: {', '.join(IMAGE_SUFFIXES)})") from None
    orientation = _orientation(content)
    if orientation != 1:
        image = _upright(image, orientation, content)
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


def _whole_content(path: str | Path) -> bytes:
    path = Path(path)
    found = find_file(path)
    if found is None:
        raise FileNotFoundError(
            f"{path}: no such image; is the image folder right, and is the download complete?"
        )
    content = found.read_bytes()
    if not content:
        raise ValueError(f"{path}: the file is empty; copy or download it again")
    if _is_truncated(content):
        raise ValueError(
            f"{path}: the image is truncated (its data end after {len(content)} bytes); "
            "copy or download it again"
        )
    return content


def _decode(content: bytes, flags: int, path: str | Path) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV cannot decode it ({error.err})") from None
    if image is None:
        raise ValueError(f"{path}: not an image that OpenCV can read, or damaged; replace it")
    return image


_TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image),
}
"""Brings the pixels upright for every value of EXIF's orientation."""
_BACK = {6: 8, 8: 6}
"""The turn that undoes another; all others undo themselves."""
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif", b"tiff:Orientation", b"irot", b"imir")
"""Without any of these in a file there is no need to look further."""
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _orientation(content: bytes) -> int:
    # Of a JPEG, the part in front of the first scan.
    end = content.find(b"\xff\xda") if content.startswith(b"\xff\xd8") else len(content)
    there = (content.find(mark, 0, end) >= 0 for mark in _EXIF_MARKS)
    if not content.startswith(_TIFF_MARKS) and not any(there):
        return 1
    try:
        with _of_any_size(), Image.open(io.BytesIO(content)) as image:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever Pillow cannot read of an image that OpenCV reads
        return 1
    return value if value in _TURNS else 1


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Lets Pillow open images of any size: only the header is read here."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _upright(image: np.ndarray, orientation: int, content: bytes) -> np.ndarray:
    # OpenCV turns TIFF by itself, even where it is told not to.
    return image if content.startswith(_TIFF_MARKS) else _TURNS[orientation](image)


def _in_eight_bits(
    stored: np.ndarray, multiplied: bool, path: Path
) -> tuple[np.ndarray, list[str]]:
    """(H, W, 3) uint8 RGB of what OpenCV decodes, and the changes made, in words.

    Args:
        multiplied: whether 8-bit colours are multiplied by their alpha already.
    """
    stored = stored if stored.ndim == 3 else stored[..., None]
    values = stored[..., :3] if stored.shape[2] >= 3 else stored[..., :1]
    done = []
    alpha = None
    if stored.shape[2] == 4 and stored.dtype.kind == "u":
        alpha = stored[..., 3:].astype(np.float32) / np.iinfo(stored.dtype).max
        alpha = alpha if alpha.min() < 1 else None
    if stored.dtype != np.uint8:
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: has pixels that are not finite; replace it")
        seen = values if alpha is None or not alpha.any() else values[alpha[..., 0] > 0]
        low, high = float(seen.min()), float(seen.max())
        values = (values.astype(np.float32) - low) * np.float32(255 / max(high - low, 1e-12))
        values = np.clip(values, 0, 255)
        done.append("of more than 8 bits, stretched to 8")
    if alpha is not None:
        opaque = 1 if multiplied and stored.dtype == np.uint8 else alpha
        values = values * opaque + 255 * (1 - alpha)
        done.append("transparent, laid on white")
    if done:
        values = np.rint(values).astype(np.uint8)
    return np.broadcast_to(values[..., ::-1], (*values.shape[:2], 3)), done


# What is lost by writing an image again cannot be seen; by default more of the colour is.
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
_WRITE = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), (".jpg", _JPEG)),
    **{suffix: (suffix, []) for suffix in (".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pnm")},
    ".webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
}


def _write(path: Path, image: np.ndarray) -> None:
    """Writes RGB in the format of the name's suffix, or as PNG where that would lose something."""
    suffix, options = _WRITE.get(path.suffix.lower(), (".png", []))
    _, content = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]), options)
    with atomic_file(path) as file:
        file.write(content.tobytes())


# A marker of a JPEG's entropy-coded data other than stuffing, restarts and fill bytes.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def _is_truncated(content: bytes) -> bool:
    """Whether a JPEG or PNG ends before its end mark; False for every other format.

    Looking for the mark from behind would not do: thumbnails carry marks of their own, and whole
    files may be followed by padding. So this walks from part to part.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        at = 8
        while at + 12 <= len(content):
            length, kind = struct.unpack_from(">I4s", content, at)
            if kind == b"IEND":
                return False
            at += 12 + length
        return True
    if content.startswith(b"\xff\xd8\xff"):
        at = 2
        while match := _NEXT_MARKER.search(content, at):
            marker, at = content[match.start() + 1], match.end()
            if marker == 0xD9:
                return False
            if marker != 0x01:
                if at + 2 > len(content):
                    return True
                at += struct.unpack_from(">H", content, at)[0]
        return True
    return False
