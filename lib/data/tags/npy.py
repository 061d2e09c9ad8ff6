"""Labels as a dictionary of 0/1 vectors that numpy saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lib.data.tags.base import ImageTags, from_bits
from lib.restricted_pickle import load_npy


def read_npy_tags(path: str | Path) -> ImageTags:
    """Reads a dictionary (name or number of an image -> 0/1 vector) as numpy saves it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something else is in it, or it would run code.
    """
    content = load_npy(path)
    content = content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path}: found a {type(content).__name__}, expected a dictionary (name -> 0/1 vector)"
        )
    rows: dict[str, list[int]] = {}
    for name, value in content.items():
        vector = np.asarray(value)
        if vector.ndim != 1 or vector.dtype.kind not in "biuf" or not np.isin(vector, (0, 1)).all():
            raise ValueError(f"{path}: the entry {name!r:.80} is not a vector of 0 and 1")
        if rows and len(vector) != len(next(iter(rows.values()))):
            raise ValueError(f"{path}: the entry {name!r:.80} has another length than the first")
        if str(name) in rows:
            raise ValueError(f"{path}: image {name} occurs for the second time")
        rows[str(name)] = vector.astype(int).tolist()
    return from_bits(rows, None, path)
