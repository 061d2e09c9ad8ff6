"""PASCAL VOC 2012 and the Semantic Boundaries Dataset (SBD) as COCO json.

The training split "trainaug" is VOC's train and all of SBD but the images of VOC's val: 10,582
images. An image in both is annotated as in VOC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

from lib.data.tags.text import read_text_tags
from lib.files import first_few, read_json, write_json
from lib.parallel import for_each
from lib.proposals.rle import mask_fields

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""Category ids are 1..20 in this order."""
NUM_IMAGES = {"trainaug": 10582, "val": 1449}
"""Images of the whole splits."""
VOID = 255

MADE_BY = "made by tools/data.py voc of"
"""Beginning of `info.description` in our json files; published ones have another."""

Objects = tuple[np.ndarray, list[tuple[int, int]]]
"""(H, W) numbers of objects, and (number, category id) of every object."""


@dataclass(frozen=True)
class Prepared:
    """A split in COCO's form."""

    json: dict[str, Any]
    missing: dict[str, str]
    """Reasons why images of the split were left out, by name."""
    sources: dict[str, int]
    """Images by where their annotations are from: VOC, SBD, or a list of labels."""


def prepare_val(voc: str | Path, jobs: int = -1) -> Prepared:
    """VOC 2012 segmentation val (1,449 images).

    Args:
        voc: the folder VOC2012 of the devkit, or one that holds it or VOCdevkit.

    Raises:
        FileNotFoundError: the folder is no devkit with the segmentation task.
    """
    voc = find_voc(voc)
    return _prepare(voc, [(name, _voc_objects, voc) for name in _voc_names(voc, "val")], jobs)


def prepare_trainaug(voc: str | Path, sbd: str | Path, jobs: int = -1) -> Prepared:
    """VOC train, SBD train and SBD val, without VOC val (10,582 images), in order of their names.

    Args:
        voc: as for `prepare_val`.
        sbd: the folder `benchmark_RELEASE`, its `dataset`, or a folder that holds it.

    Raises:
        FileNotFoundError: a folder or list of either is not there.
    """
    voc, sbd = find_voc(voc), find_sbd(sbd)
    train, val = _voc_names(voc, "train"), set(_voc_names(voc, "val"))
    augmenting = {*_read_names(sbd / "train.txt"), *_read_names(sbd / "val.txt")}
    overlap = val & set(train)
    if overlap:
        raise ValueError(f"{voc}: {min(overlap)} is in both train.txt and val.txt of the devkit")
    sources = {name: (_sbd_objects, sbd) for name in augmenting - val}
    sources |= {name: (_voc_objects, voc) for name in train}
    return _prepare(voc, [(name, *sources[name]) for name in sorted(sources)], jobs)


def prepare_from_labels(voc: str | Path, labels: str | Path, jobs: int = -1) -> Prepared:
    """The images of a list of image-level labels, in its order, without any mask.

    Args:
        voc: as for `prepare_val`.
        labels: lines `name class-id ...`, classes from 0 in the order of CLASS_NAMES, as other
            weakly supervised systems use (10,582 lines for trainaug). Only the stem counts.

    Raises:
        FileNotFoundError: there is no such devkit or file.
        ValueError: see `read_text_tags`; an image occurs twice, or is in VOC's val,
            on which results are measured.
    """
    voc = find_voc(voc)
    tags = read_text_tags(labels, CLASS_NAMES)
    listed = [(Path(name).stem, classes) for name, classes in tags.labels.items()]
    names = [name for name, _ in listed]
    _check_names(names, labels)
    (most, times), *_ = Counter(names).most_common(1)
    if times > 1:
        raise ValueError(f"{labels}: image {most} occurs more than once")
    of_val = sorted(set(names).intersection(_voc_names(voc, "val")))
    if of_val:
        raise ValueError(
            f"{labels}: {len(of_val)} of its images are in VOC's val, on which results are "
            f"measured: {first_few(of_val)}; take a list for training"
        )
    tasks = ((name, (voc, name, classes)) for name, classes in listed)
    results, missing = for_each(_labelled_image, tasks, len(listed), jobs, "reading sizes")
    return _collected(results, missing, {Path(labels).name: len(results)})


def find_voc(folder: str | Path) -> Path:
    """The folder VOC2012 at or below `folder`."""
    return _find(
        folder, ("", "VOC2012", "VOCdevkit/VOC2012"), "ImageSets/Segmentation", "a VOC2012 devkit"
    )


def find_sbd(folder: str | Path) -> Path:
    """The folder `benchmark_RELEASE/dataset` at or below `folder`."""
    return _find(
        folder, ("", "dataset", "benchmark_RELEASE/dataset"), "inst", "SBD's benchmark_RELEASE"
    )


def _find(folder: str | Path, below: tuple[str, ...], mark: str, what: str) -> Path:
    for candidate in (Path(folder) / part for part in below):
        if (candidate / mark).is_dir():
            return candidate
    raise FileNotFoundError(f"{folder}: not {what}; there is no {mark} in it or where it would be")


def _voc_names(voc: Path, split: str) -> list[str]:
    return _read_names(voc / "ImageSets" / "Segmentation" / f"{split}.txt")


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of images; unpack the data set again")
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    _check_names(names, path)
    return names


def _check_names(names: list[str], path: str | Path) -> None:
    odd = [name for name in names if not name.replace("_", "").isdecimal()]
    if odd:
        raise ValueError(f"{path}: {odd[0]!r} is no image name like 2007_000032")


def _prepare(
    voc: Path, images: list[tuple[str, Callable[[Path, str], Objects], Path]], jobs: int
) -> Prepared:
    tasks = ((name, (voc, name, read, root)) for name, read, root in images)
    results, missing = for_each(_image_json, tasks, len(images), jobs, "reading masks")
    read_by = Counter(read for name, read, _ in images if name in results)
    sources = {"VOC": read_by[_voc_objects], "SBD": read_by[_sbd_objects]}
    return _collected(results, missing, {name: n for name, n in sources.items() if n})


def _collected(
    results: dict[str, Any], missing: dict[str, str], sources: dict[str, int]
) -> Prepared:
    """The entries of all images as one json; annotations get their ids."""
    records, annotations = [], []
    for record, objects in results.values():
        records.append(record)
        annotations += [{"id": len(annotations) + i, **o} for i, o in enumerate(objects, 1)]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, 1)]
    info = {"description": f"{MADE_BY} {' and '.join(sources)}"}
    content = {"info": info, "images": records, "annotations": annotations}
    return Prepared({**content, "categories": categories}, missing, sources)


def _labelled_image(
    voc: Path, name: str, classes: tuple[int, ...]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As `_image_json`, for image-level labels."""
    record = _record(voc, name)
    annotations = [{"image_id": record["id"], "category_id": c + 1, "iscrowd": 0} for c in classes]
    return record, annotations


def _record(voc: Path, name: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """An entry of `images`; `size` (height, width) is that of the masks, if there are any."""
    path = _there(voc / "JPEGImages" / f"{name}.jpg")
    with Image.open(path) as image:
        width, height = image.size
    if size not in (None, (height, width)):
        raise ValueError(
            f"{path}: the image is {height}x{width} (height x width), its masks "
            f"{size[0]}x{size[1]}; unpack the data sets again"
        )
    return {"id": image_id(name), "file_name": path.name, "height": height, "width": width}


def _image_json(
    voc: Path, name: str, read_objects: Callable[[Path, str], Objects], root: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An entry of `images` and its annotations, still without ids."""
    labels, objects = read_objects(root, name)
    record = _record(voc, name, labels.shape)
    annotations = [
        {"image_id": record["id"], "category_id": c, **mask_fields(labels == n), "iscrowd": 0}
        for n, c in objects
    ]
    return record, annotations


def image_id(name: str) -> int:
    """2007000032 for 2007_000032, as in the published files."""
    return int(name.replace("_", ""))


def _voc_objects(voc: Path, name: str) -> Objects:
    """Objects of SegmentationObject, each of the class that SegmentationClass gives its pixels."""
    object_path = _there(voc / "SegmentationObject" / f"{name}.png")
    class_path = _there(voc / "SegmentationClass" / f"{name}.png")
    labels, classes = _read_palette(object_path), _read_palette(class_path)
    if labels.shape != classes.shape:
        raise ValueError(
            f"{class_path}: {classes.shape[0]}x{classes.shape[1]}, but {object_path} is "
            f"{labels.shape[0]}x{labels.shape[1]} (height x width); unpack the devkit again"
        )
    objects = []
    for number in np.unique(labels[(labels > 0) & (labels != VOID)]):
        inside = classes[labels == number]
        counts = np.bincount(inside[(inside > 0) & (inside != VOID)], minlength=1)
        if not counts.any():
            raise ValueError(f"{class_path}: object {number} of {object_path.name} has no class")
        objects.append((int(number), _category(int(counts.argmax()), class_path)))
    return labels, objects


def _sbd_objects(sbd: Path, name: str) -> Objects:
    """Objects of GTinst: pixels of number n belong to the n-th of Categories."""
    path = _there(sbd / "inst" / f"{name}.mat")
    try:
        content = scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)["GTinst"]
        labels = np.atleast_2d(content.Segmentation)
        categories = np.atleast_1d(content.Categories)
    except Exception as error:  # damaged bytes raise errors of every kind
        raise ValueError(
            f"{path}: no readable GTinst with Segmentation and Categories "
            f"({type(error).__name__}: {error}); unpack SBD again"
        ) from error
    numbers = np.unique(labels[(labels > 0) & (labels != VOID)])
    if len(numbers) and numbers[-1] > len(categories):
        raise ValueError(
            f"{path}: object {numbers[-1]} of the segmentation has no class among its "
            f"{len(categories)} categories; unpack SBD again"
        )
    return labels, [(int(n), _category(int(categories[n - 1]), path)) for n in numbers]


def _category(category_id: int, path: Path) -> int:
    if not 1 <= category_id <= len(CLASS_NAMES):
        raise ValueError(f"{path}: class {category_id}, VOC has 1..{len(CLASS_NAMES)}")
    return category_id


def _there(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _read_palette(path: Path) -> np.ndarray:
    """(H, W) uint8 palette indices."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(
                    f"{path}: a PNG of mode {image.mode}, expected the palette images of VOC "
                    "(do not convert them to colours)"
                )
            return np.array(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable PNG ({error}); unpack it again") from error


def check_replaceable(path: Path) -> None:
    """Raises ValueError for a json that was not made here."""
    content = read_json(path)
    info = content.get("info") if isinstance(content, dict) else None
    told = info.get("description") if isinstance(info, dict) else None
    if not str(told).startswith(MADE_BY):
        raise ValueError(
            f"{path}: made elsewhere, and can be used as it is; --overwrite replaces it, --output "
            "writes to another folder"
        )


def write_split(split: str, prepared: Prepared, path: Path) -> str:
    """Writes the json of a split; returns a line or two on what is in it.

    Raises:
        ValueError: no image could be read.
    """
    images, annotations = prepared.json["images"], prepared.json["annotations"]
    total = len(images) + len(prepared.missing)
    if not images:
        reason = next(iter(prepared.missing.values()), "its list is empty")
        raise ValueError(f"none of the {total} images of {split} could be read: {reason}")
    write_json(path, prepared.json)
    told = ", ".join(f"{count} by {source}" for source, count in prepared.sources.items())
    what = "objects" if all("segmentation" in a for a in annotations) else "labels"
    text = f"{path}: {len(images)} images (annotated: {told}) with {len(annotations)} {what}"
    if total != NUM_IMAGES[split]:
        text += f"\n  the lists name {total} images; the whole of {split} has {NUM_IMAGES[split]}"
    return text
