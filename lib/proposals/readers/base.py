"""Base classes of the readers of proposals made elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lib.proposals import rle


class Reader(ABC):
    """Reads the masks of one image at a time from one layout of files.

    `find` is called for one image after another and is cheap. `read` does the work, needs only
    what `find` returned and may run in another process.

    Args:
        source: the folder (or the one file) to read from.

    Raises:
        FileNotFoundError: it does not exist.
    """

    content: ClassVar[str] = "the file"
    """Source of the masks, as error messages call it."""
    remedy: ClassVar[str] = "make it again from this image"
    """Remedy for a file that does not fit its image."""
    needs_size: ClassVar[bool] = False
    """Whether `read` takes the (height, width) of the image as well."""

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        if not self.source.exists():
            raise FileNotFoundError(f"{self.source}: no such file or folder of proposals")

    @abstractmethod
    def find(self, image_id: int | str, file_name: str) -> Any:
        """Returns what `read` needs for this image: the path of its file, or (where, masks).

        Raises:
            FileNotFoundError: there is nothing for this image; says where it was looked for.
        """

    @staticmethod
    @abstractmethod
    def read(found: Any) -> np.ndarray:
        """(P, H, W) masks, bool or numbers of which everything but 0 is inside, in file order.

        Raises:
            ValueError: the file is damaged or holds something else; names the file.
        """


class FileReader(Reader):
    """One file (or folder) per image, named like the image."""

    suffix: ClassVar[str] = ""
    other_suffixes: ClassVar[tuple[str, ...]] = ()
    """Looked for after `suffix`."""
    takes_one_file: ClassVar[bool] = False
    """Whether the source may be one file with the masks of all images."""

    def __init__(self, source: str | Path) -> None:
        super().__init__(source)
        if self.source.is_file() and not self.takes_one_file:
            raise ValueError(
                f"{self.source}: a file, expected the folder in which every image has its own "
                f"{self.suffix or 'folder'}"
            )

    def names(self, stem: str) -> list[str]:
        """Names without suffix to look for, in this order."""
        return [stem]

    def find(self, image_id: int | str, file_name: str) -> Path:
        """The file under the sub-folders of `file_name`, or else in the source folder itself."""
        image = Path(file_name)
        names = [*self.names(image.stem), *([image.name] if self.suffix else [])]
        tried = dict.fromkeys(
            self.source / folder / (name + suffix)
            for folder in (image.parent, "")
            for name in names
            for suffix in (self.suffix, *self.other_suffixes)
        )
        for path in tried:
            if path.exists():
                return path
        raise FileNotFoundError(f"{file_name}: no proposals at {' or '.join(map(str, tried))}")


def as_masks(content: Any, where: str) -> np.ndarray:
    """(P, H, W) masks; (0, 1, 1) without any.

    Args:
        content: such an array, or P masks: arrays, RLEs, or entries with either as `segmentation`.

    Raises:
        ValueError: the masks differ in size, or it holds something else.
    """
    if not isinstance(content, np.ndarray) or content.dtype == object:
        given = content.ravel() if isinstance(content, np.ndarray) else content
        masks = [_mask(mask, where) for mask in given]
        for i, mask in enumerate(masks):
            if mask.ndim != 2 or mask.shape != masks[0].shape:
                raise ValueError(
                    f"{where}: mask {i} has shape {mask.shape}, mask 0 {masks[0].shape}; expected "
                    "masks of height x width, all of one size"
                )
        content = np.stack(masks) if masks else np.zeros(0)
    content = np.asarray(content)
    if content.size == 0:
        return np.zeros((0, 1, 1), bool)
    if content.ndim != 3 or content.dtype.kind not in "biuf":
        raise ValueError(
            f"{where}: found an array of shape {content.shape} and type {content.dtype}, expected "
            "(masks, height, width) of numbers"
        )
    return content


def _mask(given: Any, where: str) -> np.ndarray:
    if isinstance(given, dict):
        given = given.get("segmentation", given)
    try:
        return rle.decode(given) if isinstance(given, dict) else np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
