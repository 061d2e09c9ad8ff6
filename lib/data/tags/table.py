"""Labels as a CSV: a row for every label, several in a cell, or a column of 0/1 for every class."""

from __future__ import annotations

import ast
import csv
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lib.data.images import IMAGE_SUFFIXES
from lib.data.tags.base import ImageTags, from_bits, read_text
from lib.files import first_few

logger = logging.getLogger(__name__)

_FILE_HEADERS = (
    *("file", "filename", "filenames", "files", "fname", "filepath", "path", "image", "images"),
    *("imagename", "imagepath", "imagefile", "img", "imgname", "imgpath", "photo", "picture"),
    *("imageid", "imgid", "name", "id"),
)
_LABEL_HEADERS = (
    *("label", "labels", "tag", "tags", "class", "classes", "classname", "labelname", "category"),
    *("categories", "categoryname", "cats", "species", "breed", "target", "targets"),
    *("object", "objects", "labelid", "classid", "categoryid", "id"),
)
"""Names of columns, in the order in which they are taken, without case, spaces, `_` and `-`."""
_SPLIT_HEADERS = {"isvalid", "istrain", "istest", "valid", "train", "test", "split", "fold"}
_BITS = {"0": 0, "0.0": 0, "false": 0, "": 0, "1": 1, "1.0": 1, "true": 1}


def read_csv_tags(path: str | Path, class_names: Sequence[str] | None = None) -> ImageTags:
    """Reads rows `file,label`, one for every label of an image, or with several in a cell.

    Columns are separated by comma, semicolon or tab (or what a line `sep=` says). A header names
    them as is usual (file, image, path, id ..; label, class, category, tags ..); other columns are
    passed over, with a line. Instead of labels there may be a column of 0/1 for every class. An
    empty label names an image without labels.

    Args:
        class_names: the names of the classes in their order; None takes the labels, sorted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line: another number of columns, no file name, a label that is
            not a class or that may be one or several; or no label at all.
    """
    rows = _csv_rows(read_text(path), path)
    if not rows:
        raise ValueError(f"{path}: no image has a label; rows are `file,label`")
    header, file_column, columns = _csv_columns(rows, path)
    width = len(rows[0][1]) if header or len(columns) > 1 else 2
    body = rows[header:]
    for number, row in body:
        if len(row) != width or not row[file_column].strip():
            raise ValueError(
                f"{path}:{number}: expected "
                f"{f'{width} columns' if width > 2 else '`file,label`'}, got "
                f"{','.join(row)!r:.80}; an image with several labels has a row for each"
            )
    if (names := list(columns.values())) != [None]:
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise ValueError(f"{path}: two columns are called {twice!r}")
        bits: dict[str, list[int | None]] = {}
        for number, row in body:
            name = row[file_column].strip()
            if name in bits:
                raise ValueError(f"{path}:{number}: image {name} occurs for the second time")
            bits[name] = [_bit(row, c) for c in columns]
        logger.warning("%s: read as 0/1 for every class: %s", path, ", ".join(names))
        return from_bits(bits, class_names or names, path)
    (column,) = columns
    labels_of = _cell_labels([(number, row[column].strip()) for number, row in body], path)
    found: dict[str, set[str]] = {}
    for number, row in body:
        labels = labels_of[row[column].strip()]
        for label in labels:
            if class_names is not None and label not in class_names:
                raise ValueError(
                    f"{path}:{number}: label {label!r} is none of the {len(class_names)} classes "
                    f"({first_few(class_names)})"
                )
        found.setdefault(row[file_column].strip(), set()).update(labels)
    names = class_names or sorted(set().union(*found.values()))
    if not any(found.values()):
        raise ValueError(f"{path}: no image has a label; rows are `file,label`")
    index = {name: number for number, name in enumerate(names)}
    labels = {name: tuple(sorted(index[label] for label in own)) for name, own in found.items()}
    return ImageTags(tuple(names), labels)


def _csv_rows(text: str, path: str | Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    told = first.lower().startswith("sep=") and len(first.strip()) <= 5
    if told:
        delimiter = first.rstrip("\r\n")[4:5] or ","
    else:
        bare = "".join(first.split('"')[::2])
        marks = [mark for mark in bare if mark in ",;"]
        delimiter = next((mark for mark in ("\t", *marks[:1], "|") if mark in bare), ",")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None
    return rows[told:]


def _csv_columns(
    rows: Sequence[tuple[int, list[str]]], path: str | Path
) -> tuple[bool, int, dict[int, str | None]]:
    """Whether there is a header, the column of files, and those of labels.

    A column of labels has the name None; columns of 0/1 have that of their class.
    """
    number, head = rows[0]
    every = [row for _, row in rows]
    body, width = every[1:], len(head)
    names = ["".join(c for c in cell.lower() if c not in " _-") for cell in head]
    files = [names.index(name) for name in _FILE_HEADERS if name in names]
    files += [c for c in range(width) if body and all(_is_image(row, c) for row in body)]
    if not files or any(_is_image(head, c) for c in range(width)):
        bits = range(1, width)
        if width > 2 and all(_bit(row, c) is not None for row in every for c in bits):
            return False, 0, {c: f"class {c - 1}" for c in bits}
        swapped = width == 2 and all(_is_image(row, 1) and not _is_image(row, 0) for row in every)
        return False, int(swapped), {int(not swapped): None}
    others = [c for c, name in enumerate(names) if c != files[0] and name]
    label = next((c for name in _LABEL_HEADERS for c in others if names[c] == name), None)
    columns: dict[int, str | None] = {
        c: head[c].strip()
        for c in others
        if names[c] not in _SPLIT_HEADERS and body and all(_bit(row, c) is not None for row in body)
    }
    if label is None and not columns and len(others) == 1:
        label = others[0]
    if label is not None:
        columns = {label: None}
    if not columns:
        raise ValueError(
            f"{path}:{number}: no column of labels among {', '.join(head)!r:.200}; call it "
            "label (or class, category, tags), or have a column of 0 and 1 for every class"
        )
    if unread := [head[c].strip() for c in others if c not in columns]:
        logger.warning("%s: columns that are not read: %s", path, ", ".join(unread))
    return True, files[0], columns


def _is_image(row: Sequence[str], column: int) -> bool:
    return column < len(row) and row[column].strip().lower().endswith(IMAGE_SUFFIXES)


def _bit(row: Sequence[str], column: int) -> int | None:
    return _BITS.get(row[column].strip().lower()) if column < len(row) else None


def _cell_labels(cells: Sequence[tuple[int, str]], path: str | Path) -> dict[str, list[str]]:
    """The labels of every cell; all cells together decide whether a comma separates labels."""
    lines = {text: number for number, text in reversed(cells)}
    pieces = {text: parts for text in lines if (parts := _listed(text)) is not None}
    whole = {text for text in lines if text not in pieces}
    commas = {text: _parts(text, ",") for text in whole if "," in text}
    alone = (whole - set(commas)).union(*pieces.values())
    times = Counter(part for parts in commas.values() for part in set(parts))
    if any(
        alone.intersection(parts) or all(times[part] > 1 for part in parts)
        for parts in commas.values()
    ):
        pieces |= commas
    elif unclear := [text for text, parts in commas.items() if any(times[p] > 1 for p in parts)]:
        text = min(unclear, key=lines.get)
        raise ValueError(
            f"{path}:{lines[text]}: is {text!r:.80} one label or several? Separate several by |, "
            "or give each a row; write one label without the comma"
        )
    alone = alone.union(*pieces.values())
    for text in sorted(alone, key=lambda text: lines.get(text, 0)):
        words = text.split()
        if len(words) > 1 and all(word in alone or word.isdecimal() for word in words):
            raise ValueError(
                f"{path}:{lines.get(text, 0)}: is {text!r:.80} one label or the labels "
                f"{', '.join(words)}? Separate several by | or give each a row; join the words of "
                "one label by _"
            )
    if several := [text for text, parts in pieces.items() if len(parts) > 1]:
        text = min(several, key=lines.get)
        message = "%s: cells with several labels, such as %r, are read as %s"
        logger.warning(message, path, text, " and ".join(pieces[text]))
    return {text: pieces.get(text, [text] if text else []) for text in lines}


def _listed(text: str) -> list[str] | None:
    """The labels of a cell that is a list or has | or ; in it; None for any other."""
    if text.startswith("[") and text.endswith("]"):
        try:
            content = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
        return [str(part).strip() for part in content if str(part).strip()]
    return next((_parts(text, mark) for mark in "|;" if mark in text), None)


def _parts(text: str, mark: str) -> list[str]:
    return [part.strip() for part in text.split(mark) if part.strip()]
