"""Masks as PNG: one image of labels, or a folder of binary images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from lib.proposals.readers.base import FileReader, as_masks


class LabelPngReader(FileReader):
    """`<stem>.png`, 8 or 16 bits, grey or palette: pixels of value v > 0 are one mask.

    The masks are in the order of their values; 0 belongs to none.
    """

    suffix = ".png"
    content = "the label image"

    @staticmethod
    def read(found: Path) -> np.ndarray:
        labels = read_indices(found)
        values = np.unique(labels)
        return labels == values[values > 0, None, None]


class MaskPngReader(FileReader):
    """A folder `<stem>/` of PNGs, one a mask: everything but 0 is inside.

    They are taken in the order of the numbers in their names (2.png before 10.png), as written by
    Segment Anything's script.
    """

    content = "the folder"

    @staticmethod
    def read(found: Path) -> np.ndarray:
        if not found.is_dir():
            raise ValueError(f"{found}: expected a folder of PNGs, one for each mask")
        paths = sorted(found.glob("*.png"), key=_natural)
        return as_masks([read_indices(path) != 0 for path in paths], str(found))


def read_indices(path: Path) -> np.ndarray:
    """(H, W) ints: the values of a grey PNG, the indices (not the colours) of a palette PNG.

    Raises:
        ValueError: it is damaged or has colours without a palette.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise ValueError(
                    f"{path}: a PNG of mode {image.mode}, expected one channel (grey or palette)"
                )
            return np.array(image).astype(np.int32)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable PNG ({error}); copy or make it again") from error


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.stem)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
