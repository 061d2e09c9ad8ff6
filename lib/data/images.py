"""Image files: whole, decoded, and of the size that they should have."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads an image of any format that OpenCV knows as 8-bit RGB.

    Grey images get three equal channels and an alpha channel is dropped. The EXIF orientation
    is ignored: COCO's sizes and annotations are those of the pixels as stored. JPEG and PNG
    files must be whole (OpenCV fills what is missing of a JPEG with grey and says nothing).

    Args:
        size: (height, width) that the image must have, if given.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not an image, or not of the given size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such image; is the image folder right, and is the download complete?"
        )
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path}: the file is empty; copy or download it again")
    if _is_truncated(content):
        raise ValueError(
            f"{path}: the image is truncated (its data end after {len(content)} bytes); "
            "copy or download it again"
        )
    try:
        image = cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV cannot decode it ({error.err})") from None
    if image is None:
        raise ValueError(f"{path}: not an image that OpenCV can read, or damaged; replace it")
    if size is not None and image.shape[:2] != tuple(size):
        raise ValueError(
            f"{path}: the image has {_by(image.shape)} pixels (height x width), the json says "
            f"{_by(size)}; take the images the json was made for"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


# A marker of a JPEG's entropy-coded data other than stuffing, restarts and fill bytes.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def _is_truncated(content: bytes) -> bool:
    """Whether a JPEG or PNG ends before its end mark; False for every other format."""
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg_is_truncated(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_is_truncated(content)
    return False


def _jpeg_is_truncated(content: bytes) -> bool:
    # Looking for the last two bytes would not do: thumbnails carry end marks of their own, and
    # whole files may be followed by padding. So walk from segment to segment.
    at = 2
    while match := _NEXT_MARKER.search(content, at):
        marker = content[match.start() + 1]
        at = match.end()
        if marker == 0xD9:
            return False
        if marker != 0x01:
            if at + 2 > len(content):
                return True
            at += struct.unpack_from(">H", content, at)[0]
    return True


def _png_is_truncated(content: bytes) -> bool:
    at = 8
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if kind == b"IEND":
            return False
        at += 12 + length
    return True


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
