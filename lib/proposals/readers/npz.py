"""Masks as numpy saves them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lib.proposals.readers.base import FileReader, as_masks
from lib.restricted_pickle import DAMAGED_ARRAY, load_npy


class NpzReader(FileReader):
    """`<stem>.npz` with `masks`, or with one array of any name, or `<stem>.npy`.

    The array is (P, H, W) bool or numbers; in a .npy it may be a list of masks or of entries with
    a `segmentation` (the mask generator of Segment Anything).
    """

    suffix = ".npz"
    other_suffixes = (".npy",)
    content = "masks"

    @staticmethod
    def read(found: Path) -> np.ndarray:
        try:
            if found.suffix == ".npy":
                return as_masks(load_npy(found), f"{found}: masks")
            with np.load(found, allow_pickle=False) as content:
                name = content.files[0] if len(content.files) == 1 else "masks"
                if name not in content:
                    raise ValueError(f"no array `masks` in it (it has {', '.join(content)})")
                return as_masks(content[name], f"{found}: {name}")
        except (*DAMAGED_ARRAY, zipfile.BadZipFile, zlib.error) as error:
            text = str(error).removeprefix(f"{found}: ")
            raise ValueError(f"{found}: {text}; make the file again") from error
