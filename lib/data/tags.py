"""Image-level labels: where all that training knows about the content of an image comes from.

Besides COCO annotations they may come from a text file, a CSV file, a folder per class or a COCO
json without masks. lib/data/custom.py makes a whole COCO json of these, and everything else goes
on as usual.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.files import read_json

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_CSV_HEADER = ["file", "label"]


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


def read_tags(path: str | Path) -> ImageTags:
    """Reads labels in whichever of the forms below they come.

    A folder has a sub-folder for each class; of files the suffix tells: `.csv`, `.txt` or `.lst`,
    `.json`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: another suffix, or what the reader of that form finds wrong.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder_tags(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{_existing(path)}: labels come as a .csv of rows `file,label`, a .txt of lines "
            "`name class-id ...`, a COCO .json, or a folder with a sub-folder for each class; "
            "save a spreadsheet as CSV"
        )
    return reader(path)


def labels_from_annotations(
    annotations: Sequence[dict], image_ids: Sequence[int], category_ids: Sequence[int]
) -> np.ndarray:
    """Which categories are annotated in which image; crowds (`iscrowd` 1) do not count.

    Args:
        annotations: COCO annotations of which `image_id`, `category_id` and, if there,
            `iscrowd` are read, and nothing else.

    Returns:
        (number of images, C) float32 in {0, 1}, in the orders of the ids given.
    """
    row = {image_id: number for number, image_id in enumerate(image_ids)}
    column = {category_id: number for number, category_id in enumerate(category_ids)}
    labels = np.zeros((len(row), len(column)), np.float32)
    for annotation in annotations:
        if not annotation.get("iscrowd", 0):
            labels[row[annotation["image_id"]], column[annotation["category_id"]]] = 1
    return labels


def read_text_tags(path: str | Path, class_names: Sequence[str] | None = None) -> ImageTags:
    """Reads lines `name class-id ...`, with class ids from 0; empty lines are passed over.

    A leading `/` of a name is dropped. A name without class ids is an image without labels.

    Args:
        class_names: the names of the classes; None calls them `class 0` up to the highest id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line: a class id that is not a whole number from 0 or has no
            name, a name that occurs twice; or no line at all.
    """
    path = _existing(path)
    labels: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, *words = line.split()
        name = name.lstrip("/")
        for word in words:
            if not word.isdecimal():
                raise ValueError(
                    f"{path}:{number}: {word!r} is not a class id (0, 1, ...); "
                    "lines are `name class-id ...`; class names, and file names with spaces, "
                    "need a CSV"
                )
        if name in labels:
            raise ValueError(f"{path}:{number}: image {name} occurs for the second time")
        labels[name] = tuple(sorted({int(word) for word in words}))
        highest = labels[name][-1] if words else -1
        if class_names is not None and highest >= len(class_names):
            raise ValueError(
                f"{path}:{number}: class id {highest}, but there are {len(class_names)} classes, "
                f"0..{len(class_names) - 1}; ids count from 0"
            )
    count = 1 + max((ids[-1] for ids in labels.values() if ids), default=-1)
    if not count:
        raise ValueError(f"{path}: no image has a class; lines are `name class-id ...`")
    names = class_names if class_names is not None else [f"class {n}" for n in range(count)]
    return ImageTags(tuple(names), labels)


def read_csv_tags(path: str | Path, class_names: Sequence[str] | None = None) -> ImageTags:
    """Reads rows `file,label`, one for every label of an image; a header row may come first.

    An empty label names an image without labels.

    Args:
        class_names: the names of the classes in their order; None takes the labels, sorted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line: not two columns, no file name, a label that is not a
            class; or no label at all.
    """
    path = _existing(path)
    found: dict[str, set[str]] = {}
    rows = csv.reader(_text(path).splitlines(), skipinitialspace=True, strict=True)
    for number, row in _numbered(rows, path):
        if not row or (number == 1 and [word.strip().lower() for word in row] == _CSV_HEADER):
            continue
        if len(row) != 2 or not row[0].strip():
            raise ValueError(
                f"{path}:{number}: expected `file,label`, got {','.join(row)!r:.80}; "
                "an image with several labels has a row for each"
            )
        name, label = row[0].strip(), row[1].strip()
        found.setdefault(name, set())
        if label:
            if class_names is not None and label not in class_names:
                raise ValueError(
                    f"{path}:{number}: label {label!r} is none of the {len(class_names)} classes "
                    f"({', '.join(class_names[:5])}{', ...' if len(class_names) > 5 else ''})"
                )
            found[name].add(label)
    names = sorted(set().union(*found.values())) if class_names is None else list(class_names)
    if not any(found.values()):
        raise ValueError(f"{path}: no image has a label; rows are `file,label`")
    index = {name: number for number, name in enumerate(names)}
    return ImageTags(
        tuple(names),
        {file: tuple(sorted(index[label] for label in own)) for file, own in found.items()},
    )


def read_folder_tags(folder: str | Path) -> ImageTags:
    """Takes every sub-folder for a class and the images in it for images of that class.

    Classes are the names of the sub-folders, sorted; image names are `<class>/<file>`, with
    further sub-folders between them if there are any, so an image has one label. Files that are
    not images and hidden ones are passed over.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no sub-folders, or one of them holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    classes = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder}: it has no sub-folders; expected one for each class")
    labels: dict[str, tuple[int, ...]] = {}
    passed_over: Counter[str] = Counter()
    for number, sub in enumerate(classes):
        files = visible_files(sub)
        images = [name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise ValueError(
                f"{sub}: no images in this class's folder ({', '.join(IMAGE_SUFFIXES)}); remove "
                "or fill it"
            )
        passed_over.update(Path(name).suffix for name in set(files).difference(images))
        labels |= {f"{sub.name}/{name}": (number,) for name in images}
    if passed_over:
        told = ", ".join(f"{count} {suffix or '(none)'}" for suffix, count in passed_over.items())
        logger.warning("%s: passed over, by suffix: %s", folder, told)
    return ImageTags(tuple(sub.name for sub in classes), labels)


def visible_files(folder: Path) -> list[str]:
    """The files below a folder, relative to it with `/`, sorted, without hidden ones."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            found.append(relative.as_posix())
    return sorted(found)


def read_coco_tags(path: str | Path) -> ImageTags:
    """Takes from a COCO json which categories each image shows, and its ids.

    Of annotations `image_id`, `category_id` and `iscrowd` are read; masks, boxes and sizes need
    not be there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a json, with the entry that is wrong; or no label at all.
    """
    content = read_json(path)
    try:
        categories = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        images = {int(i["id"]): str(i["file_name"]) for i in content["images"]}
        ids = tuple(sorted(categories))
        labels = labels_from_annotations(content["annotations"], list(images), ids)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a COCO json of image-level labels ({type(error).__name__}: {error}); "
            "expected images (id, file_name), categories (id, name) and annotations (image_id, "
            "category_id) of these"
        ) from None
    if not labels.any():
        raise ValueError(f"{path}: no image has a label")
    if len(set(images.values())) < len(images):
        twice = Counter(images.values()).most_common(1)[0][0]
        raise ValueError(f"{path}: image {twice} occurs for the second time")
    return ImageTags(
        tuple(categories[i] for i in ids),
        {
            name: tuple(np.flatnonzero(row).tolist())
            for name, row in zip(images.values(), labels, strict=True)
        },
        ids,
        {name: image_id for image_id, name in images.items()},
    )


_READERS = {
    ".csv": read_csv_tags,
    ".txt": read_text_tags,
    ".lst": read_text_tags,
    ".json": read_coco_tags,
}


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from None


def _numbered(rows: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: not valid CSV: {error}") from None
