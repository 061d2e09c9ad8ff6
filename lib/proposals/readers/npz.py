"""Masks as numpy saves them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lib.proposals.readers.base import FileReader, check_array


class NpzReader(FileReader):
    """`<stem>.npz` with `masks`, or with one array of any name, or `<stem>.npy`.

    The array is (P, H, W) bool or numbers.
    """

    suffix = ".npz"
    other_suffixes = (".npy",)
    content = "masks"

    @staticmethod
    def read(found: Path) -> np.ndarray:
        try:
            content = np.load(found, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return check_array(content, f"{found}: masks")
            with content:
                name = content.files[0] if len(content.files) == 1 else "masks"
                if name not in content:
                    raise ValueError(f"no array `masks` in it (it has {', '.join(content)})")
                return check_array(content[name], f"{found}: {name}")
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            text = str(error).removeprefix(f"{found}: ")
            raise ValueError(f"{found}: {text}; make the file again") from error
