"""The one reader of COCO files: one form comes out, or one error that names file and entry.

Training, evaluation, export, drawing and `--labels` all read through `read_coco`, so a file is
right or wrong everywhere alike, and before anything is computed.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from lib.data.images import check_name
from lib.files import find_file, first_few, id_key, read_json, whole
from lib.proposals import rle
from lib.structures import ImageRecord

logger = logging.getLogger(__name__)

FEW_IMAGES = 10
"""Classes with fewer images than this are warned of."""
_FLAGS = {"0": 0, "false": 0, "0.0": 0, "none": 0, "": 0, "1": 1, "true": 1, "1.0": 1}
"""`iscrowd` as text."""


def read_coco(
    source: str | Path | dict[str, Any],
    *,
    masks: bool = False,
    sizes: bool = True,
    annotations: bool = True,
    need_masks: bool = True,
    boxes: bool = False,
    name: str = "the ground truth",
) -> dict[str, Any]:
    """Reads a COCO json into one form, whatever form it is written in.

    Ids may be whole numbers, floats with whole values, or text; `1`, `1.0` and `"1"` are the same
    id. Text that is no number, and numbers beyond 64 bits, get the smallest numbers that are free
    and keep the old id as `original_id`. A category that has no annotation and is only the parent
    of others (their `supercategory`, or of their name) is left out.

    Args:
        masks: annotations need a segmentation. Those without a usable one (empty, less than a
            triangle, not finite, outside the image) are left out and counted, unless all are.
        need_masks: False gives no annotations where none has a usable mask.
        boxes: one without a usable mask but with a box gets that as its mask, and `box_only` True.
        sizes: images need `height` and `width`.
        annotations: False accepts a json without the list `annotations` (COCO test-dev).
        name: what errors call content that was not read from a file.

    Returns:
        `images` (id, file_name, height, width and their other fields), `categories` (id, name and
        their other fields) and `annotations`, in their order. Annotations have image_id,
        category_id, iscrowd (0 or 1), `id` and `score` where they are there and, for `masks`,
        segmentation (compressed RLE), area and bbox (tight).
        With `masks` annotations are numbered from 1. Fields of images and categories that nobody
        reads are plain JSON: NaN and infinity become None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the first fault found, with the file, the entry and what is wrong.
    """
    where = name if isinstance(source, dict) else str(source)
    content = source if isinstance(source, dict) else read_json(source)
    listed = {key: _entries(content, key, where, annotations) for key in _LISTS}
    of_images, of_categories = _numbered(listed["images"]), _numbered(listed["categories"])
    images, categories = ([e.fields for e in entries] for entries in (of_images, of_categories))
    for entry in of_images:
        _check_image(entry, sizes)
    _check_unique([image["file_name"] for image in images], "images", "file_name", where)
    for entry in of_categories:
        name = entry.fields.get("name")
        if type(name) in (int, float):
            entry.fields["name"] = str(name if whole(name) is None else whole(name))
        entry.text("name")
    find_image, find_category = lookup(images), lookup(categories)
    kept = [_annotation(e, find_image, find_category, masks) for e in listed["annotations"]]
    _check_unique([a.get("id") for a in kept], "annotations", "id", where)
    categories = _without_parents(categories, {a["category_id"] for a in kept}, where)
    _check_unique([c["name"] for c in categories], "categories", "name", where)
    if masks:
        kept = _with_masks(kept, listed["annotations"], find_image, where, need_masks, boxes)
    return {"images": images, "categories": categories, "annotations": kept}


def lookup(entries: Sequence[dict[str, Any]]) -> Callable[[Any], dict[str, Any] | None]:
    """Finds an entry of `read_coco` by its id, in any form, or by the id that it had."""
    table = {entry["id"]: entry for entry in entries}
    table |= {id_key(e["original_id"]): e for e in entries if e.get("original_id") is not None}
    return lambda value: table.get(id_key(value))


class CocoImages:
    """The images of a COCO json and their image-level labels. Masks never come out of here.

    Classes are 0..C-1 in the order of ascending category id; the ids need not be contiguous.
    An image has a label for every category with an annotation that is not a crowd
    (`iscrowd` 1 does not count: a crowd is a region, not an instance to be found).

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
        ValueError: see `read_coco`; also a file name that leads out of the image folder, or that
            two images share but for the suffix.
    """

    def __init__(self, path: str | Path, require_annotations: bool = True) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(
                f"{path}: no such file; docs/DATASET.md says where the json of a data set comes "
                "from (VOC 2012: tools/data.py voc makes it)"
            )
        content = read_coco(self.path, annotations=require_annotations)
        for number, image in enumerate(content["images"]):
            path = PurePosixPath(image["file_name"])
            if not path.name or path.is_absolute() or ".." in path.parts:
                entry = _Entry(self.path, "images", number, image)
                entry.refuse("file_name", "a path inside the image folder")
        # What is made from an image is stored under its name without suffix.
        stems = [str(PurePosixPath(i["file_name"]).with_suffix("")) for i in content["images"]]
        _check_unique(stems, "images", "file_name without suffix", self.path)
        labels = image_labels(content)
        self.category_ids = [category["id"] for category in content["categories"]]
        self.class_names = [category["name"] for category in content["categories"]]
        self.images = [
            ImageRecord(i["id"], i["file_name"], i["height"], i["width"], row, i.get("original_id"))
            for i, row in zip(content["images"], labels, strict=True)
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
            ids = (record.image_id, record.original_id)
            for name in (str(path), path.name, path.stem, *map(str, ids)):
                by_name.setdefault(name, number)
        missing = [name for name in names if name not in by_name]
        if missing:
            raise ValueError(f"{self.path}: no image has the id or name {', '.join(missing)}")
        return [by_name[name] for name in names]

    def warn_of_labels(self) -> None:
        """See `warn_of_labels`."""
        warn_of_labels(self.class_names, np.array([i.image_labels for i in self.images]), self.path)

    def check_files(self, image_dir: str | Path) -> None:
        """Makes sure that every image of the json is there, without decoding any.

        Raises:
            FileNotFoundError: how many are missing and the names of the first few.
        """
        folder = Path(image_dir)
        missing = [i.file_name for i in self.images if not find_file(folder / i.file_name)]
        if missing:
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of the {len(self)} images that {self.path} names are "
                f"not there: {first_few(missing)}; "
                "is it the right folder?"
            )


def image_labels(content: dict[str, Any]) -> np.ndarray:
    """The categories that are annotated in each image; crowds do not count.

    Args:
        content: as `read_coco` gives it; its categories are brought into the order of their ids.

    Returns:
        (number of images, C) float32 in {0, 1}, in the order of images and categories.
    """
    content["categories"].sort(key=lambda category: category["id"])
    row = {image["id"]: number for number, image in enumerate(content["images"])}
    column = {category["id"]: number for number, category in enumerate(content["categories"])}
    labels = np.zeros((len(row), len(column)), np.float32)
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            labels[row[annotation["image_id"]], column[annotation["category_id"]]] = 1
    return labels


def warn_of_labels(class_names: Sequence[str], labels: np.ndarray, source: str | Path) -> None:
    """Warns of labels that cannot teach anything, before hours are spent on them.

    Args:
        labels: (N, C) in {0, 1}, of the images of a data set.
        source: what the warnings call the labels.
    """
    labels = labels[labels.any(axis=1)].astype(bool)
    counts, total = labels.sum(axis=0), len(labels)
    there = np.flatnonzero(counts)

    def warn(text: str, classes: Sequence[int], remedy: str) -> None:
        if len(classes):
            told = first_few([f"{class_names[c]} ({counts[c]})" for c in classes])
            _tell(f"{source}: {text}: {told}; {remedy}")

    other = "add images without it, labelled with what they show (a class 'other' will do)"
    if len(there) == 1:
        warn("there is only one class, so that nothing tells it from anything", there, other)
    else:
        everywhere = f"in every one of the {total} labelled images"
        warn(everywhere, there[counts[there] == total], other)
    few = there[counts[there] < FEW_IMAGES]
    warn(f"classes of fewer than {FEW_IMAGES} images", few, "expect little of them")
    warn("in no image", np.flatnonzero(counts == 0), "nothing can be learned about it")
    columns: dict[bytes, list[int]] = {}
    for c in there[counts[there] < total]:
        columns.setdefault(labels[:, c].tobytes(), []).append(c)
    for same in columns.values():
        if len(same) > 1:
            warn("always together", same, "nothing tells one from the other")
    folded = Counter(name.casefold() for name in class_names)
    alike = [c for c, name in enumerate(class_names) if folded[name.casefold()] > 1]
    warn("names that differ only in case", alike, "they are different classes")


_LISTS = ("images", "categories", "annotations")


@dataclass(slots=True)
class _Entry:
    """An entry of one of the lists, and its place, for errors."""

    where: str | Path
    key: str
    number: int
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        known = f" (id {self.fields['id']!s:.40})" if "id" in self.fields else ""
        return f"{self.key}[{self.number}]{known}"

    def __str__(self) -> str:
        return f"{self.where}: {self.name}"

    def id(self, field: str = "id") -> int | str:
        value = id_key(self.fields.get(field))
        if value is None or (isinstance(value, str) and not _is_unicode(value)):
            self.refuse(field, "a whole number or text")
        return value

    def text(self, field: str) -> str:
        """Text that can be printed; names of images are left to `check_name`, which says more."""
        value = self.fields.get(field)
        if not (isinstance(value, str) and value and (self.key == "images" or _is_unicode(value))):
            self.refuse(field, "text")
        return value

    def refuse(self, field: str, expected: str) -> NoReturn:
        if field not in self.fields:
            raise ValueError(f"{self} has no '{field}'")
        raise ValueError(f"{self} has {field} {self.fields[field]!r:.200}, expected {expected}")


def _is_unicode(text: str) -> bool:
    """False for half a character, which can neither be printed nor written."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _entries(content: Any, key: str, where: str, need_annotations: bool) -> list[_Entry]:
    if not isinstance(content, dict):
        raise ValueError(
            f"{where}: found a {type(content).__name__}, expected an object with 'images', "
            "'categories' and 'annotations' (a COCO json; a list is a result file)"
        )
    entries = content.get(key)
    if key == "annotations" and key not in content:
        if not need_annotations:
            return []
        raise ValueError(
            f"{where}: it has no list 'annotations' to learn from or to compare with; detections "
            "on COCO test-dev go to the evaluation server, packed by tools/export.py submission"
        )
    if not isinstance(entries, list):
        raise ValueError(
            f"{where}: it has no list '{key}'; a COCO json holds 'images', 'categories' and "
            f"'annotations', this one {', '.join(map(repr, content))[:200] or 'nothing'}"
        )
    if not entries and key != "annotations":
        raise ValueError(f"{where}: the list '{key}' is empty")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: {key}[{number}] is not an object but {entry!r:.80}")
    return [_Entry(where, key, number, entry) for number, entry in enumerate(entries)]


def _numbered(entries: list[_Entry]) -> list[_Entry]:
    """Copies of the entries whose ids fit 64 bits; see `read_coco` for the others."""
    keys = [entry.id() for entry in entries]
    _check_unique(keys, entries[0].key, "id", entries[0].where)
    taken = {k for k in keys if isinstance(k, int) and -(2**63) <= k < 2**63}
    free = itertools.filterfalse(taken.__contains__, itertools.count(1))
    copies = []
    for entry, own in zip(entries, keys, strict=True):
        fields = {field: _plain(value) for field, value in entry.fields.items()}
        ids = {"id": own} if own in taken else {"id": next(free), "original_id": own}
        copies.append(replace(entry, fields=fields | ids))
    return copies


def _plain(value: Any, depth: int = 0) -> Any:
    """Replaces NaN, infinity and very deep nesting by None, so that it can be written again."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | dict) and depth == 50:
        return None
    if isinstance(value, list):
        return [_plain(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one, depth + 1) for key, one in value.items()}
    return value


def _check_image(entry: _Entry, sizes: bool) -> None:
    if fault := check_name(entry.text("file_name")):
        raise ValueError(f"{entry} has file_name {fault}")
    if not sizes:
        return
    image = entry.fields
    for side in ("height", "width"):
        if side not in image:
            remedy = "--labels takes such a json, and the sizes from the images"
            raise ValueError(f"{entry} has no '{side}'; {remedy}")
        value = whole(id_key(image[side]))
        if value is None:
            entry.refuse(side, "a whole number")
        image[side] = value
    height, width = image["height"], image["width"]
    if not (min(height, width) >= 1 and height * width <= rle.MAX_PIXELS):
        raise ValueError(
            f"{entry} has height {height!s:.40} and width {width!s:.40}, expected at least 1 and "
            f"together at most {rle.MAX_PIXELS // 10**6} million pixels"
        )


def _annotation(
    entry: _Entry, find_image: Callable, find_category: Callable, masks: bool
) -> dict[str, Any]:
    """Ids, flag and score of an annotation."""
    fields = entry.fields
    annotation: dict[str, Any] = {}
    if fields.get("id") is not None:
        annotation["id"] = entry.id()
    for field, find in (("image_id", find_image), ("category_id", find_category)):
        found = find(entry.id(field))
        if found is None:
            raise ValueError(f"{entry} has {field} {fields[field]!r:.80}, which is not in the json")
        annotation[field] = found["id"]
    flag = fields.get("iscrowd")
    if isinstance(flag, str):
        flag = _FLAGS.get(flag.strip().lower(), flag)
    elif flag is None or flag != flag:
        flag = 0
    if isinstance(flag, str | list | dict) or flag not in (0, 1):
        entry.refuse("iscrowd", "0 or 1")
    annotation["iscrowd"] = int(flag)
    if masks and fields.get("score") is not None:
        annotation["score"] = score_of(fields, str(entry))
    return annotation


def score_of(entry: dict[str, Any], where: str) -> float:
    """The score of a result; ValueError unless it is a finite number."""
    score = entry["score"]
    if type(score) not in (int, float) or not abs(score) < 1e300:
        raise ValueError(f"{where}: score is {score!r:.80}, expected a finite number")
    return float(score)


def _without_parents(
    categories: list[dict[str, Any]], annotated: set[int], where: str
) -> list[dict[str, Any]]:
    # Names that another category has above it, or that a category with an object has.
    parents = {str(c.get("supercategory")) for c in categories}
    parents |= {c["name"] for c in categories if c["id"] in annotated}
    kept = []
    for category in categories:
        name = category["name"]
        own_parent = str(category.get("supercategory")) == name
        if category["id"] in annotated or own_parent or name not in parents:
            kept.append(category)
        else:
            _tell(
                f"{where}: category {category['id']} ({name}) is only the parent of others and has "
                "no annotation: it is left out"
            )
    return kept


def _with_masks(
    annotations: list[dict[str, Any]],
    entries: list[_Entry],
    find: Callable,
    where: str,
    need: bool,
    boxes: bool,
) -> list[dict[str, Any]]:
    kept, left_out = [], []
    for annotation, entry in zip(annotations, entries, strict=True):
        image = find(annotation["image_id"])
        size = (image["height"], image["width"])
        try:
            mask = rle.compressed(entry.fields.get("segmentation"), size)
        except rle.NoMask as error:
            mask = _box_mask(entry.fields.get("bbox"), size) if boxes else None
            if mask is None:
                left_out.append(f"{entry.name}: {error}")
                continue
            annotation["box_only"] = True
        except ValueError as error:
            raise ValueError(f"{entry} ({image['file_name']}): {error}") from None
        area = _number(entry.fields.get("area"))
        kept.append(
            {
                **annotation,
                "id": len(kept) + 1,
                "segmentation": mask,
                # COCO sorts objects into sizes by the area that its file states.
                "area": rle.area(mask) if area is None else area,
                "bbox": rle.tight_box(mask),
            }
        )
    if left_out:
        told = "; ".join(left_out[:5]) + ("; ..." if left_out[5:] else "")
        if need and not kept:
            raise ValueError(
                f"{where}: none of the {len(annotations)} annotations has a usable mask: {told}"
            )
        if kept or any(entry.fields.get("segmentation") for entry in entries):  # not labels alone
            _tell(
                f"{where}: {len(left_out)} of {len(annotations)} annotations have no usable mask "
                f"and are left out: {told}"
            )
    return kept


_FAR = 1e9
"""Pixels; a box beyond is none."""


def _box_mask(box: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """The pixels of a box [x, y, width, height] as a mask; None if it is none inside the image."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return None
    try:
        numbers = [float(value) for value in box]
    except (TypeError, ValueError, OverflowError):
        return None
    if not all(abs(number) < _FAR for number in numbers):  # NaN is not
        return None
    x, y, width, height = numbers
    mask = np.zeros(size, bool)
    rows, columns = (
        slice(max(0, round(start)), max(0, round(start + length)))
        for start, length in ((y, height), (x, width))
    )
    mask[rows, columns] = True
    return rle.mask_to_rle(mask) if mask.any() else None


def _number(value: Any) -> float | int | None:
    """A finite number from 0, also written as text; None for anything else."""
    try:
        value = float(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return value if type(value) in (int, float) and 0 <= value < 1e300 else None


def _check_unique(values: Sequence[Any], where: str, key: str, path: str | Path) -> None:
    first: dict[Any, int] = {}
    for number, value in enumerate(values):
        if value is not None and first.setdefault(value, number) != number:
            raise ValueError(
                f"{path}: {where}[{first[value]}] and {where}[{number}] have the same {key}, "
                f"{value!r:.200}"
            )


@functools.cache
def _tell(message: str) -> None:
    """Warns once in a process, however often the file is read."""
    logger.warning(message)
