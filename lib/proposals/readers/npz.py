"""Masks as numpy saves them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lib.proposals.readers.base import FileReader, check_array


class NpzReader(FileReader):
    """`<stem>.npz` with `masks`: (P, H, W) bool or numbers."""

    suffix = ".npz"
    content = "masks"

    @staticmethod
    def read(found: Path) -> np.ndarray:
        try:
            with np.load(found, allow_pickle=False) as content:
                if "masks" not in content:
                    raise ValueError(f"no array `masks` in it (it has {', '.join(content)})")
                masks = content["masks"]
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{found}: {error}; make the file again") from error
        return check_array(masks, f"{found}: masks")
