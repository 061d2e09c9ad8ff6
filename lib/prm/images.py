"""Whole images squeezed to one square size, for the PRM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from lib.data.coco import ImageRecord
from lib.data.images import read_image
from lib.data.transforms import Flip, mirror_image, normalise
from lib.data.workers import load_ahead


class SquareImages:
    """The images of a data set, squeezed and normalised.

    Args:
        records: which images.
        folder: where their files lie.
        size: S; both sides become this long (bilinear).
        memory_limit: bytes; if all images together take less (as uint8), each is read once and
            kept.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        folder: str | Path,
        size: int,
        memory_limit: int = 2 * 1024**3,
    ) -> None:
        self.records = records
        self.folder = Path(folder)
        self.size = size
        self.keeps = len(records) * size * size * 3 <= memory_limit
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    @property
    def image_labels(self) -> Tensor:
        """(N, C) float32 in {0, 1}."""
        return torch.from_numpy(np.stack([record.image_labels for record in self.records]))

    def pixels(self, index: int) -> np.ndarray:
        """(S, S, 3) uint8 RGB.

        Raises:
            FileNotFoundError, ValueError: see lib.data.images.read_image.
        """
        if index in self._kept:
            return self._kept[index]
        record = self.records[index]
        image = read_image(self.folder / record.file_name, record.size)
        image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        if self.keeps:
            self._kept[index] = image
        return image

    def batch(self, indices: Sequence[int], flips: Sequence[Flip]) -> Tensor:
        """(B, 3, S, S) float32, normalised."""
        return torch.stack(
            [
                normalise(mirror_image(self.pixels(index), flip))
                for index, flip in zip(indices, flips, strict=True)
            ]
        )


def iterate_batches(
    images: SquareImages,
    batches: Sequence[tuple[Sequence[int], Sequence[Flip]]],
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """`images.batch` of every entry of `batches`, in order.

    Args:
        num_workers: processes that read ahead; none are used for images kept in memory.
    """
    workers = 0 if images.keeps else num_workers
    return load_ahead(lambda batch: images.batch(*batch), batches, workers)
