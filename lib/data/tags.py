"""Image-level labels: all that training knows about the content of an image.

They come as a CSV, a text list, a dictionary of numpy vectors, a COCO json or a folder for each
class. lib/data/custom.py makes a COCO json of them.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.coco import image_labels, read_coco
from lib.data.images import IMAGE_SUFFIXES
from lib.files import first_few
from lib.restricted_pickle import load_npy

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


def read_tags(path: str | Path, leave_out: Path | None = None) -> ImageTags:
    """Reads labels in any of these forms.

    A folder has a sub-folder for each class; the suffix tells the form of a file: `.csv` or
    `.tsv`, `.txt` or `.lst`, `.npy`, `.json`.

    Args:
        leave_out: a folder that is passed over where labels are folders.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: another suffix, or what the reader of that form finds wrong.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder_tags(path, leave_out)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{_existing(path)}: labels come as a .csv of rows `file,label`, a .txt of lines "
            "`name class-id ...`, a .npy of a dictionary (name -> 0/1 vector), a COCO .json, or a "
            "folder with a sub-folder for each class; save a spreadsheet as CSV"
        )
    return reader(path)


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
    for number, line in enumerate(_text(path).split("\n"), start=1):
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
        return _from_bits(rows, class_names, path)
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
    return ImageTags(tuple(class_names or _numbered_names(count)), labels)


def _from_bits(
    rows: Mapping[str, Sequence[Any]], class_names: Sequence[str] | None, path: str | Path
) -> ImageTags:
    """Labels of 0/1 for every class."""
    labels = {name: tuple(i for i, bit in enumerate(r) if int(bit)) for name, r in rows.items()}
    count = len(next(iter(rows.values())))
    if class_names is not None and len(class_names) != count:
        raise ValueError(f"{path}: 0/1 for {count} classes, but there are {len(class_names)}")
    if not any(labels.values()):
        raise ValueError(f"{path}: no image has a class; every value is 0")
    return ImageTags(tuple(class_names or _numbered_names(count)), labels)


def _numbered_names(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


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
    return _from_bits(rows, None, path)


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
    rows = _csv_rows(_text(path), path)
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
        return _from_bits(bits, class_names or names, path)
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


def read_folder_tags(folder: str | Path, leave_out: Path | None = None) -> ImageTags:
    """Takes every sub-folder for a class, and the images in it for images of that class.

    Classes are the names of the sub-folders, sorted; image names are `<class>/<file>`, with
    further sub-folders between them if there are any, so an image has one label. Files that are
    not images and hidden ones are passed over. Links to folders are followed.

    Args:
        leave_out: a folder that is passed over, wherever it lies.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no sub-folders, or one of them holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    classes = sorted(
        sub
        for sub in folder.iterdir()
        if sub.is_dir() and not sub.name.startswith(".") and not _is_same(sub, leave_out)
    )
    if not classes:
        raise ValueError(f"{folder}: it has no sub-folders; expected one for each class")
    labels: dict[str, tuple[int, ...]] = {}
    passed_over: Counter[str] = Counter()
    names: list[str] = []
    for sub in classes:
        files = visible_files(sub, leave_out)
        images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
        if not files and any(_is_run(path) for path in (sub, *sub.glob("*"), *sub.glob("*/*"))):
            continue
        if not images:
            raise ValueError(
                f"{sub}: no images in this class's folder ({', '.join(IMAGE_SUFFIXES)}); remove "
                "or fill it"
            )
        passed_over.update(Path(name).suffix for name in set(files).difference(images))
        labels |= {f"{sub.name}/{name}": (len(names),) for name in images}
        names.append(sub.name)
    if passed_over:
        told = ", ".join(f"{count} {suffix or '(none)'}" for suffix, count in passed_over.items())
        logger.warning("%s: passed over, by suffix: %s", folder, told)
    return ImageTags(tuple(names), labels)


def visible_files(folder: Path, leave_out: Path | None = None) -> list[str]:
    """The files below a folder, relative to it with `/`, sorted, without hidden ones.

    Links to folders are followed, but not into a folder that they lie in. Runs, with all their
    pictures, are passed over.
    """

    def below(path: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(path)
        if real in above or _is_same(Path(path), leave_out) or _is_run(Path(path)):
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from below(entry.path, f"{prefix}{entry.name}/", above | {real})
                elif entry.is_file():
                    yield prefix + entry.name

    return sorted(below(str(folder), "", frozenset()))


def _is_run(path: Path) -> bool:
    """Whether a folder is the output of a training."""
    return (path / "environment.json").is_file() and (path / "config.yaml").is_file()


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and other.exists() and path.samefile(other)


def read_coco_tags(path: str | Path) -> ImageTags:
    """Reads the categories that each image of a COCO json shows, and its ids.

    Masks, boxes and sizes need not be there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `lib.data.coco.read_coco`; or no label at all.
    """
    content = read_coco(path, sizes=False)
    labels = image_labels(content)
    if not labels.any():
        raise ValueError(f"{path}: no image has a label")
    images, categories = content["images"], content["categories"]
    return ImageTags(
        tuple(category["name"] for category in categories),
        {
            image["file_name"]: tuple(np.flatnonzero(row).tolist())
            for image, row in zip(images, labels, strict=True)
        },
        tuple(category["id"] for category in categories),
        {image["file_name"]: image["id"] for image in images},
        {image["id"]: image["original_id"] for image in images if "original_id" in image},
    )


_READERS = {
    ".csv": read_csv_tags,
    ".tsv": read_csv_tags,
    ".txt": read_text_tags,
    ".lst": read_text_tags,
    ".npy": read_npy_tags,
    ".json": read_coco_tags,
}


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _text(path: str | Path) -> str:
    content = _existing(path).read_bytes()
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
