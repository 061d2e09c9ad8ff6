"""Reads point labels, which take the place of peaks (CIM-p)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np


@dataclass(frozen=True, eq=False)
class Points:
    """The N annotated points of an image in the order of the file."""

    xy: np.ndarray
    """(N, 2) float64, pixels of the image: x in [0, W), y in [0, H)."""
    class_idx: np.ndarray
    """(N,) int64, 0..C-1."""
    confidence: np.ndarray
    """(N,) float64."""


def points_path(folder: str | Path, file_name: str) -> Path:
    """Path of the points of image `file_name`: its name with suffix .txt, in `folder`."""
    return Path(folder) / PurePosixPath(file_name).with_suffix(".txt")


def read_points(path: str | Path, num_classes: int, size: tuple[int, int]) -> Points:
    """Reads lines `x y class confidence`; empty lines are passed over, an empty file has none.

    Args:
        size: (height, width) of the image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line: not four numbers, a class that is not a whole number in
            0..C-1, a point outside the image, a number that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; every image needs its point labels, in an empty file if none"
        )
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            x, y, c, confidence = (float(word) for word in line.split())
        except ValueError:
            raise ValueError(
                f"{path}:{number}: expected `x y class confidence`, got {line!r:.80}"
            ) from None
        if not (np.isfinite(confidence) and c in range(num_classes)):
            raise ValueError(
                f"{path}:{number}: class {c:g} with confidence {confidence:g}, expected a class in "
                f"0..{num_classes - 1} (they count from 0) and a finite confidence"
            )
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise ValueError(
                f"{path}:{number}: the point x {x:g}, y {y:g} is outside its image of "
                f"{size[0]}x{size[1]} (height x width)"
            )
        rows.append((x, y, c, confidence))
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Points(table[:, :2], table[:, 2].astype(np.int64), table[:, 3])
