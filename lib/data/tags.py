"""Image-level labels: where all that training knows about the content of an image comes from.

Besides COCO annotations they may come from a text file, a CSV file or a folder per class.
`tags_to_coco` makes a COCO json of these, and everything else goes on as usual.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.data.images import read_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_CSV_HEADER = ["file", "label"]


@dataclass(frozen=True)
class ImageTags:
    """Image-level labels without annotations."""

    class_names: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    """Image name -> its classes, 0..C-1, ascending and distinct; may be empty. The order is
    that of the source. Names from lists may lack a suffix."""


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
                    "lines are `name class-id ...`"
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

    Classes are the names of the sub-folders, sorted; image names are `<class>/<file>`, so an
    image has one label. Files that are not images and hidden ones are passed over.

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
    labels = {}
    for number, sub in enumerate(classes):
        files = sorted(f.name for f in sub.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        files = [name for name in files if not name.startswith(".")]
        if not files:
            raise ValueError(f"{sub}: no images in this class's folder; remove or fill it")
        labels |= {f"{sub.name}/{name}": (number,) for name in files}
    return ImageTags(tuple(sub.name for sub in classes), labels)


def tags_to_coco(tags: ImageTags, image_dir: str | Path) -> dict[str, Any]:
    """A COCO json (to be written as it is) whose annotations have no masks, only categories.

    Ids count from 1, so that class c is category c + 1. Every image is read for its size.

    Raises:
        FileNotFoundError: an image of the list is not in the folder, with its name as given or
            with a suffix of IMAGE_SUFFIXES added.
        ValueError: an image is damaged.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, classes in tqdm(tags.labels.items(), desc="reading sizes", unit="image"):
        file_name = _find_image(Path(image_dir), name)
        height, width = read_image(Path(image_dir) / file_name).shape[:2]
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for c in classes:
            number = len(annotations) + 1
            annotations.append(
                {"id": number, "image_id": image_id, "category_id": c + 1, "iscrowd": 0}
            )
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(tags.class_names)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _find_image(folder: Path, name: str) -> str:
    # Lists made for VOC write /JPEGImages/2007_000032.jpg for what lies in JPEGImages.
    for candidate in dict.fromkeys([name, Path(name).name]):
        for suffix in ("", *IMAGE_SUFFIXES):
            if (folder / (candidate + suffix)).is_file():
                return candidate + suffix
    raise FileNotFoundError(
        f"{folder}: there is no image {name}, with or without a suffix; is it the right folder?"
    )


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
