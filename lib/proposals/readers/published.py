"""The published cob/*.pkl: proposals of a whole split in one pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lib.proposals.readers.base import Reader, as_masks
from lib.restricted_pickle import find_image, load_by_image


class PickleReader(Reader):
    """A pickle of the lists `indexes`, `masks`, `boxes` and `scores`, matched by image id.

    The masks of an image may be an array (P, H, W), a list of arrays or a list of RLEs. Files that
    hold only the 7x7 masks that the network pools with cannot give the proposals back: they are
    refused, and `tools/proposals.py check --published` compares them with imported ones.
    """

    content = "masks"
    remedy = "the pickle is of another set of images"

    def __init__(self, source: str | Path) -> None:
        super().__init__(source)
        if self.source.is_dir():
            raise ValueError(f"{self.source}: a folder, expected the one pickle of all images")
        self._by_image = load_by_image(self.source, "masks")

    def find(self, image_id: int | str, file_name: str) -> tuple[str, Any]:
        values = find_image(self._by_image, image_id, file_name)
        if values is None:
            raise FileNotFoundError(
                f"{file_name}: neither {image_id} nor {Path(file_name).stem} is among the "
                f"{len(self._by_image)} indexes of {self.source}"
            )
        return f"{self.source}: image {image_id}", values[0]

    @staticmethod
    def read(found: tuple[str, Any]) -> np.ndarray:
        where, content = found
        masks = as_masks(content, where)
        if masks.shape[1:] == (7, 7):
            raise ValueError(
                f"{where}: only the 7x7 masks that the network pools with, from which the whole "
                "masks cannot be made; import the COB .mat files (--format cob) and compare with "
                "tools/proposals.py check --published"
            )
        return masks
