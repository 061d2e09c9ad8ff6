"""Any COCO json, checked before anything else happens.

Masks never come out of here: what training learns of an image is its image-level labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lib.data.images import read_image
from lib.data.tags import labels_from_annotations
from lib.files import read_json

__all__ = ["CocoImages", "ImageRecord", "read_image"]


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """What a json says of one image."""

    image_id: int
    file_name: str
    """Relative to the image folder; may name sub-folders."""
    height: int
    width: int
    image_labels: np.ndarray
    """(C,) float32 in {0, 1}."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.height, self.width


class CocoImages:
    """The images of a COCO json and their image-level labels.

    Classes are 0..C-1 in the order of ascending category id; the ids need not be contiguous.
    An image has a label for every category with an annotation that is not a crowd
    (`iscrowd` 1 does not count: a crowd is a region, not an instance to be found). Annotations
    need `id`, `image_id` and `category_id` only.

    Args:
        path: the json file.
        require_annotations: False accepts a json without `annotations` (COCO test-dev); its
            images then have no labels.

    Attributes:
        images: list[ImageRecord] in the order of the json.
        class_names: list[str]
        category_ids: list[int], class index -> COCO category id.
        without_labels: int, how many images have no label at all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the first fault found, with the file, the entry and what is wrong: a missing
            list or field, a value of the wrong type, an id or file name that occurs twice, an
            annotation of an image or category that the json does not have.
    """

    def __init__(self, path: str | Path, require_annotations: bool = True) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; docs/DATASET.md says where the json of a data set comes from "
                "(VOC 2012: tools/prepare_voc.py makes it)"
            )
        content = read_json(self.path)
        categories, images, annotations = _checked(content, self.path, require_annotations)
        self.category_ids = [int(c["id"]) for c in categories]
        self.class_names = [c["name"] for c in categories]
        labels = labels_from_annotations(annotations, [i["id"] for i in images], self.category_ids)
        self.images = [
            ImageRecord(int(i["id"]), i["file_name"], int(i["height"]), int(i["width"]), row)
            for i, row in zip(images, labels, strict=True)
        ]
        self.without_labels = int((labels.sum(axis=1) == 0).sum())

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def find(self, names: Sequence[str]) -> list[int]:
        """Numbers of the images of these ids, file names, or file names without folder or suffix.

        Raises:
            ValueError: there is none of an id or name.
        """
        by_name: dict[str, int] = {}
        for number, record in enumerate(self.images):
            path = PurePosixPath(record.file_name)
            for name in (str(path), path.name, path.stem, str(record.image_id)):
                by_name.setdefault(name, number)
        missing = [name for name in names if name not in by_name]
        if missing:
            raise ValueError(f"{self.path}: no image has the id or name {', '.join(missing)}")
        return [by_name[name] for name in names]

    def check_files(self, image_dir: str | Path) -> None:
        """Looks whether every image of the json is there (it does not decode them).

        Raises:
            FileNotFoundError: how many are missing and the names of the first few.
        """
        folder = Path(image_dir)
        missing = [i.file_name for i in self.images if not (folder / i.file_name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of the {len(self)} images that {self.path} names are "
                f"not there: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; "
                "is it the right folder?"
            )


def _checked(
    content: Any, path: Path, require_annotations: bool
) -> tuple[list[dict], list[dict], list[dict]]:
    """Categories by ascending id, images, annotations; raises ValueError at the first fault."""
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: found a {type(content).__name__}, expected an object with 'images', "
            "'categories' and 'annotations' (a COCO json; a list of results is not one)"
        )
    if "annotations" not in content and not require_annotations:
        content = {**content, "annotations": []}
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise ValueError(
                f"{path}: it has no list '{key}'; a COCO json holds 'images', 'categories' and "
                f"'annotations', this one {', '.join(map(repr, content)) or 'nothing'}"
            )
    for key in ("images", "categories"):
        if not content[key]:
            raise ValueError(f"{path}: the list '{key}' is empty")
    _check_fields(content["categories"], "categories", {"id": int, "name": str}, path)
    _check_fields(
        content["images"],
        "images",
        {"id": int, "file_name": str, "height": int, "width": int},
        path,
    )
    annotation_fields = {"id": int, "image_id": int, "category_id": int}
    _check_fields(content["annotations"], "annotations", annotation_fields, path)
    _check_images(content["images"], path)
    _check_unique([c["name"] for c in content["categories"]], "categories", "name", path)
    image_ids = {i["id"] for i in content["images"]}
    category_ids = {c["id"] for c in content["categories"]}
    for number, annotation in enumerate(content["annotations"]):
        for key, known in (("image_id", image_ids), ("category_id", category_ids)):
            if annotation[key] not in known:
                raise ValueError(
                    f"{path}: annotations[{number}] (id {annotation['id']}) has {key} "
                    f"{annotation[key]}, which is not in the json"
                )
    return sorted(content["categories"], key=_by_id), content["images"], content["annotations"]


def _check_fields(entries: list, where: str, fields: dict[str, type], path: Path) -> None:
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {where}[{number}] is not an object but {entry!r:.80}")
        for key, kind in fields.items():
            value = entry.get(key)
            if type(value) is kind or (kind is int and _is_whole(value)):
                continue
            known = f" (id {entry['id']})" if "id" in entry else ""
            if key not in entry:
                raise ValueError(f"{path}: {where}[{number}]{known} has no '{key}'")
            raise ValueError(
                f"{path}: {where}[{number}]{known} has {key} {value!r:.80}, "
                f"expected {'a whole number' if kind is int else 'text'}"
            )
    _check_unique([entry["id"] for entry in entries], where, "id", path)


def _check_images(images: list[dict], path: Path) -> None:
    for number, image in enumerate(images):
        name = PurePosixPath(image["file_name"])
        if not name.name or name.is_absolute() or ".." in name.parts:
            raise ValueError(
                f"{path}: images[{number}] (id {image['id']}) has file_name "
                f"{image['file_name']!r}, expected a path inside the image folder"
            )
        if image["height"] < 1 or image["width"] < 1:
            raise ValueError(
                f"{path}: images[{number}] (id {image['id']}) has height {image['height']} and "
                f"width {image['width']}, expected at least 1"
            )
    _check_unique([i["file_name"] for i in images], "images", "file_name", path)
    # What is made from an image is stored under its name without suffix.
    stems = [str(PurePosixPath(i["file_name"]).with_suffix("")) for i in images]
    _check_unique(stems, "images", "file_name without suffix", path)


def _check_unique(values: Sequence[Any], where: str, key: str, path: Path) -> None:
    first: dict[Any, int] = {}
    for number, value in enumerate(values):
        if value in first:
            raise ValueError(
                f"{path}: {where}[{first[value]}] and {where}[{number}] have the same {key}, "
                f"{value!r}"
            )
        first[value] = number


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _by_id(entry: dict) -> int:
    return entry["id"]
