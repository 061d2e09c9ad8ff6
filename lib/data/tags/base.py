"""Shared by the readers of image-level labels: their result, and text files in any encoding."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class ImageTags:
    """Image-level labels without annotations."""

    class_names: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    """Image name -> its classes, 0..C-1, ascending and distinct; may be empty. The order is
    that of the source. Names from lists may lack a suffix."""
    category_ids: tuple[int, ...] | None = None
    """Of every class, where the source numbers them itself."""
    image_ids: Mapping[str, int] | None = None
    """Of every name in `labels`, where the source numbers them itself."""
    original_ids: Mapping[int, int | str] | None = None
    """Image id -> the source's own, where that was text."""


def from_bits(
    rows: Mapping[str, Sequence[Any]], class_names: Sequence[str] | None, path: str | Path
) -> ImageTags:
    """Labels of 0/1 for every class.

    Args:
        rows: by image name, C values; at least one row, all of the same length.
        class_names: C names; None numbers the classes.
        path: the source, for errors.

    Raises:
        ValueError: another number of names, or no image has a class.
    """
    labels = {name: tuple(i for i, bit in enumerate(r) if int(bit)) for name, r in rows.items()}
    count = len(next(iter(rows.values())))
    if class_names is not None and len(class_names) != count:
        raise ValueError(f"{path}: 0/1 for {count} classes, but there are {len(class_names)}")
    if not any(labels.values()):
        raise ValueError(f"{path}: no image has a class; every value is 0")
    return ImageTags(tuple(class_names or numbered_names(count)), labels)


def numbered_names(count: int) -> list[str]:
    """Names for classes that have none."""
    return [f"class {number}" for number in range(count)]


def existing_file(path: str | Path) -> Path:
    """The path; FileNotFoundError if there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in what its byte order mark says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text in that encoding; with file and line.
    """
    content = existing_file(path).read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{number}: not a text file in UTF-8 ({error.reason}, byte "
            f"{content[error.start : error.start + 1]!r}); save it as UTF-8 (in Excel: CSV UTF-8), "
            "or convert it, from Windows for example by `iconv -f cp1252 -t utf-8`"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{path}: not a text file in UTF-8 (it holds zero bytes); save it as UTF-8"
        )
    return text
