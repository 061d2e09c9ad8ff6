"""Masks in COCO's JSON: Segment Anything's mask generator, result files, and others like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lib.files import id_key, read_json
from lib.proposals import rle
from lib.proposals.readers.base import FileReader, as_masks


class CocoRleReader(FileReader):
    """`<stem>.json`, or one file for all images: a list of masks in the order of the file.

    An entry is an RLE `{"size": [H, W], "counts": text or list}` or holds one, or polygons, as
    `segmentation` (the mask generator of Segment Anything, COCO's results); the list may stand
    under `annotations`. In one file for all images every entry has an `image_id`: the id of the
    image, or its file name with or without suffix.
    """

    suffix = ".json"
    content = "its RLE list"
    needs_size = True
    takes_one_file: ClassVar[bool] = True

    def __init__(self, source: str | Path) -> None:
        super().__init__(source)
        self._by_image: dict[int | str, list[tuple[int, Any]]] | None = None
        if self.source.is_file():
            self._by_image = {}
            for number, entry in enumerate(_entries(self.source)):
                key = id_key(entry.get("image_id")) if isinstance(entry, dict) else None
                if key is None:
                    raise ValueError(
                        f"{self.source}: entry {number} has no image_id; one file for all images "
                        "needs it in every entry. If there is a file for each image, give their "
                        "folder"
                    )
                self._by_image.setdefault(key, []).append((number, entry))

    def find(self, image_id: int | str, file_name: str) -> Any:
        if self._by_image is None:
            return super().find(image_id, file_name)
        path = Path(file_name)
        for name in (image_id, file_name, str(path.with_suffix("")), path.name, path.stem):
            if entries := self._by_image.get(id_key(name)):
                return str(self.source), entries
        raise FileNotFoundError(
            f"{file_name}: none of the {len(self._by_image)} image ids in {self.source} is its id "
            f"({image_id}) or its name"
        )

    @staticmethod
    def read(found: Path | tuple[str, Any], size: tuple[int, int] | None = None) -> np.ndarray:
        where, entries = (found, enumerate(_entries(found))) if isinstance(found, Path) else found
        masks = []
        for number, entry in entries:
            given = entry.get("segmentation", entry) if isinstance(entry, dict) else entry
            try:
                is_rle = isinstance(given[0] if isinstance(given, list) and given else given, dict)
                masks.append(rle.decode(given, None if is_rle else size))
            except ValueError as error:
                raise ValueError(f"{where}: entry {number}: {error}") from None
            if size is not None and masks[-1].shape != tuple(size):
                return masks[-1][None]  # the caller says that the size is wrong
        return as_masks(masks, str(where))


def _entries(path: Path) -> list:
    content = read_json(path)
    if isinstance(content, dict):
        content = content.get("annotations")
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of RLEs, or of entries with a `segmentation`")
    return content
