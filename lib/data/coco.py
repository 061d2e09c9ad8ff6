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
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lib.data.images import check_name
from lib.files import find_file, id_key, read_json, whole
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
    images = _numbered(listed["images"], "images", where)
    categories = _numbered(listed["categories"], "categories", where)
    for number, image in enumerate(images):
        _check_image(image, number, where, sizes)
    _check_unique([image["file_name"] for image in images], "images", "file_name", where)
    for number, category in enumerate(categories):
        text = category.get("name")
        if type(text) in (int, float):
            text = str(text if whole(text) is None else whole(text))
        category["name"] = _text(text, category, "categories", number, "name", where)
    find_image, find_category = lookup(images), lookup(categories)
    kept = [
        _annotation(entry, number, find_image, find_category, where, masks)
        for number, entry in enumerate(listed["annotations"])
    ]
    _check_unique([a.get("id") for a in kept], "annotations", "id", where)
    categories = _without_parents(categories, {a["category_id"] for a in kept}, where)
    _check_unique([c["name"] for c in categories], "categories", "name", where)
    if masks:
        kept = _with_masks(kept, listed["annotations"], find_image, where, need_masks)
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
                raise ValueError(
                    f"{_entry(self.path, 'images', number, image)} has file_name "
                    f"{image['file_name']!r}, expected a path inside the image folder"
                )
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
        labels = [record.image_labels for record in self.images]
        warn_of_labels(self.class_names, np.array(labels), self.path)

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
                f"not there: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; "
                "is it the right folder?"
            )


def image_labels(content: dict[str, Any]) -> np.ndarray:
    """Which categories are annotated in which image; crowds do not count.

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
            told = ", ".join(f"{class_names[c]} ({counts[c]})" for c in classes[:10])
            more = ", ..." if len(classes) > 10 else ""
            _tell(f"{source}: {text}: {told}{more}; {remedy}")

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


def _entries(content: Any, key: str, where: str, need_annotations: bool) -> list[dict[str, Any]]:
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
    return entries


def _entry(where: str | Path, key: str, number: int, entry: dict[str, Any]) -> str:
    known = f" (id {entry['id']!s:.40})" if "id" in entry else ""
    return f"{where}: {key}[{number}]{known}"


def _id(entry: dict[str, Any], field: str, key: str, number: int, where: str) -> int | str:
    value = id_key(entry.get(field))
    if value is None or (isinstance(value, str) and not _is_unicode(value)):
        _refuse(entry, field, key, number, where, "a whole number or text")
    return value


def _refuse(entry: dict, field: str, key: str, number: int, where: str, expected: str) -> None:
    if field not in entry:
        raise ValueError(f"{_entry(where, key, number, entry)} has no '{field}'")
    raise ValueError(
        f"{_entry(where, key, number, entry)} has {field} {entry[field]!r:.80}, expected {expected}"
    )


def _text(value: Any, entry: dict, key: str, number: int, field: str, where: str) -> str:
    if not isinstance(value, str) or not value or not (key == "images" or _is_unicode(value)):
        _refuse(entry, field, key, number, where, "text")
    return value


def _is_unicode(text: str) -> bool:
    """False for half a character, which can neither be printed nor written."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _numbered(entries: list[dict[str, Any]], key: str, where: str) -> list[dict[str, Any]]:
    """Copies of the entries whose ids fit 64 bits; see `read_coco` for the others."""
    keys = [_id(entry, "id", key, number, where) for number, entry in enumerate(entries)]
    _check_unique(keys, key, "id", where)
    taken = {k for k in keys if isinstance(k, int) and -(2**63) <= k < 2**63}
    free = itertools.filterfalse(taken.__contains__, itertools.count(1))
    copies = []
    for entry, own in zip(entries, keys, strict=True):
        copy = {field: _plain(value) for field, value in entry.items()}
        copy["id"] = own
        if own not in taken:
            copy |= {"id": next(free), "original_id": own}
        copies.append(copy)
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


def _check_image(image: dict[str, Any], number: int, where: str, sizes: bool) -> None:
    name = _text(image.get("file_name"), image, "images", number, "file_name", where)
    if fault := check_name(name):
        raise ValueError(f"{_entry(where, 'images', number, image)} has file_name {fault}")
    for side in ("height", "width") if sizes else ():
        given = image.get(side)
        value = whole(id_key(given) if isinstance(given, str) else given)
        if side not in image:
            raise ValueError(
                f"{_entry(where, 'images', number, image)} has no '{side}'; --labels takes such a "
                "json, and the sizes from the images"
            )
        if value is None:
            _refuse(image, side, "images", number, where, "a whole number")
        image[side] = value
    if sizes and not (
        min(image["height"], image["width"]) >= 1
        and image["height"] * image["width"] <= rle.MAX_PIXELS
    ):
        raise ValueError(
            f"{_entry(where, 'images', number, image)} has height {image['height']!s:.40} and "
            f"width {image['width']!s:.40}, expected at least 1 and together at most "
            f"{rle.MAX_PIXELS // 10**6} million pixels"
        )


def _annotation(
    entry: dict[str, Any],
    number: int,
    find_image: Callable,
    find_category: Callable,
    where: str,
    masks: bool,
) -> dict[str, Any]:
    """Ids, flag and score of an annotation."""
    annotation: dict[str, Any] = {}
    if entry.get("id") is not None:
        annotation["id"] = _id(entry, "id", "annotations", number, where)
    for field, find in (("image_id", find_image), ("category_id", find_category)):
        _id(entry, field, "annotations", number, where)
        found = find(entry[field])
        if found is None:
            raise ValueError(
                f"{_entry(where, 'annotations', number, entry)} has {field} "
                f"{entry[field]!r:.80}, which is not in the json"
            )
        annotation[field] = found["id"]
    flag = entry.get("iscrowd")
    if isinstance(flag, str):
        flag = _FLAGS.get(flag.strip().lower(), flag)
    elif flag is None or flag != flag:
        flag = 0
    if isinstance(flag, str | list | dict) or flag not in (0, 1):
        _refuse(entry, "iscrowd", "annotations", number, where, "0 or 1")
    annotation["iscrowd"] = int(flag)
    if masks and entry.get("score") is not None:
        annotation["score"] = score_of(entry, _entry(where, "annotations", number, entry))
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
    above = {id(c): str(c.get("supercategory")) for c in categories}
    # Names that another category has above it, or that a category with an object has.
    parents = {above[id(c)] for c in categories if above[id(c)] != c["name"]}
    parents |= {c["name"] for c in categories if c["id"] in annotated}
    parents |= {c["name"] for c in categories if above[id(c)] == c["name"]}
    kept = []
    for category in categories:
        name = category["name"]
        if category["id"] in annotated or above[id(category)] == name or name not in parents:
            kept.append(category)
        else:
            _tell(
                f"{where}: category {category['id']} ({name}) is only the parent of others and has "
                "no annotation: it is left out"
            )
    return kept


def _with_masks(
    annotations: list[dict[str, Any]],
    entries: list[dict[str, Any]],
    find: Callable,
    where: str,
    need: bool,
) -> list[dict[str, Any]]:
    kept, left_out = [], []
    for number, (annotation, entry) in enumerate(zip(annotations, entries, strict=True)):
        image = find(annotation["image_id"])
        at = _entry("", "annotations", number, entry)[2:]
        try:
            mask = rle.compressed(entry.get("segmentation"), (image["height"], image["width"]))
        except rle.NoMask as error:
            left_out.append(f"{at}: {error}")
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {at} ({image['file_name']}): {error}") from None
        area = _number(entry.get("area"))
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
        if kept or any(entry.get("segmentation") for entry in entries):  # not labels alone
            _tell(
                f"{where}: {len(left_out)} of {len(annotations)} annotations have no usable mask "
                f"and are left out: {told}"
            )
    return kept


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
