"""Labels as lines `name class-id ...`, or `name 0 1 0 ...`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from lib.data.tags.base import ImageTags, from_bits, numbered_names, read_text

logger = logging.getLogger(__name__)


def read_text_tags(path: str | Path, class_names: Sequence[str] | None = None) -> ImageTags:
    """Reads lines `name class-id ...`, with class ids from 0, or `name 0 1 0 ...`.

    Where every line has the same number of 0 and 1, these say for every class whether it is
    there. Empty lines are passed over. A name without class ids is an image without labels.

    Args:
        class_names: the names of the classes; None calls them `class 0` up to the highest id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line: a class id that is not a whole number from 0, has no name
            or occurs twice; a name that occurs twice; lines that could be ids or 0/1; no line.
    """
    rows: dict[str, list[str]] = {}
    numbers: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        name, *words = line.split()
        for word in words:
            if not (word.isascii() and word.isdecimal() and len(word) < 10):
                raise ValueError(
                    f"{path}:{number}: {word!r:.80} is not a class id (0, 1, ...); "
                    "lines are `name class-id ...`; class names, and file names with spaces, "
                    "need a CSV"
                )
        if name in rows:
            raise ValueError(f"{path}:{number}: image {name} occurs for the second time")
        rows[name], numbers[name] = words, number
    widths = {len(words) for words in rows.values()}
    if len(widths) == 1 and min(widths) > 1 and set().union(*rows.values()) <= {"0", "1"}:
        if widths == {2} and all(len(set(words)) == 2 for words in rows.values()):
            raise ValueError(
                f"{path}:{min(numbers.values())}: every line has one 0 and one 1: class ids, or "
                "0/1 for each of two classes? Write ids of one class alone, or a CSV with a "
                "column for each class"
            )
        logger.warning("%s: read as 0/1 for every class", path)
        return from_bits(rows, class_names, path)
    labels = {name: tuple(sorted(map(int, words))) for name, words in rows.items()}
    for name, ids in labels.items():
        if len(set(ids)) < len(ids):
            raise ValueError(
                f"{path}:{numbers[name]}: a class id occurs twice; lines are `name class-id ...`, "
                "or `name 0 1 0 ...` with as many 0 and 1 on every line as there are classes"
            )
        if class_names is not None and ids and ids[-1] >= len(class_names):
            raise ValueError(
                f"{path}:{numbers[name]}: class id {ids[-1]}, but there are {len(class_names)} "
                f"classes, 0..{len(class_names) - 1}; ids count from 0"
            )
    count = 1 + max((ids[-1] for ids in labels.values() if ids), default=-1)
    if not count:
        raise ValueError(
            f"{path}: no image has a class; lines are `name class-id ...`"
            + ("; a list with commas is a .csv" if any("," in name for name in labels) else "")
        )
    if class_names is None and count > 10 * len(labels) + 1000:
        raise ValueError(f"{path}: class id {count - 1}; ids count from 0 without large gaps")
    return ImageTags(tuple(class_names or numbered_names(count)), labels)
