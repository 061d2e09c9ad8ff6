"""Pseudo labels as a data set in YOLO's segmentation format (docs/export.md).

data.yaml                class names, lists of images
train.txt                one image on a line
images/train/NAME.jpg
labels/train/NAME.txt    class and polygon of every instance, as fractions of width and height
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import yaml
from tqdm import tqdm

from lib.data.coco import CocoImages
from lib.data.images import is_turned, read_record
from lib.evaluation.polygons import as_one_polygon, mask_to_polygons
from lib.evaluation.pseudo_labels import MIN_PART
from lib.files import atomic_folder, find_file, first_few, link_or_copy, write_text
from lib.proposals import rle
from lib.structures import ImageRecord

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".mpo")
"""Of the files that readers of the format take for images."""
_HEAD = """\
# Written by tools/export.py yolo from pseudo labels: masks that a network found, not annotations.
# `val` is the training list, which measures nothing: name a list of images you annotated instead.
"""


def write_yolo(
    folder: Path,
    coco: CocoImages,
    image_dir: Path,
    instances: Mapping[int, Sequence[Mapping[str, Any]]],
    made_from: Mapping[str, Any],
    tolerance: float = 1.0,
    min_part: float = MIN_PART,
    copy_images: bool = False,
) -> tuple[int, int]:
    """Writes the data set; an older one in the folder is replaced when the new one is complete.

    Images without an instance are left out: they would be learned as background. Sub-folders
    become part of the names. An image is linked; it is written again, as PNG, where readers might
    not know its format or turn it otherwise (EXIF).

    Args:
        coco, image_dir: the images.
        instances: by image id, entries with `category_id` and `segmentation` (compressed RLE).
        made_from: written into data.yaml.
        tolerance, min_part: see `mask_to_polygons`.
        copy_images: copies images instead of linking them, for a folder that is to be moved.

    Returns:
        (number of images, number of instances).

    Raises:
        FileExistsError: the folder holds something else.
        FileNotFoundError: images are missing.
        ValueError: there is no instance; two images whose names with their folders are one.
    """
    records = [record for record in coco.images if instances.get(record.image_id)]
    if not records:
        raise ValueError(f"{coco.path}: no annotation to export")
    names = _flat_names(records)
    coco.check_files(image_dir)
    class_of = {category: number for number, category in enumerate(coco.category_ids)}
    count = 0
    with atomic_folder(folder, "YOLO data set", "data.yaml") as new:
        for kind in ("images", "labels"):
            (new / kind / "train").mkdir(parents=True)
        listed = []
        for record, name in zip(tqdm(records, "images", unit="image"), names, strict=True):
            lines = []
            for entry in instances[record.image_id]:
                mask = rle.rle_to_mask(entry["segmentation"])
                if polygons := mask_to_polygons(mask, tolerance, min_part):
                    polygon = _fractions(as_one_polygon(polygons), record.size)
                    lines.append(f"{class_of[entry['category_id']]} {polygon}\n")
            write_text(new / "labels/train" / f"{name}.txt", "".join(lines))
            image = _put_image(record, image_dir, new / "images/train" / name, copy_images)
            listed.append(f"./images/train/{image}\n")
            count += len(lines)
        write_text(new / "train.txt", "".join(listed))
        content = {
            "train": "train.txt",
            "val": "train.txt",
            "nc": coco.num_classes,
            "names": dict(enumerate(coco.class_names)),
            "made_from": dict(made_from),
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(new / "data.yaml", _HEAD + text)
    return len(records), count


def _flat_names(records: Sequence[ImageRecord]) -> list[str]:
    """Names without folders and suffix: sub/a.jpg -> sub__a."""
    stems = [PurePosixPath(record.file_name).with_suffix("") for record in records]
    names = ["__".join(stem.parts) for stem in stems]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"images whose names with their folders become one: {first_few(twice)}; rename them"
        )
    return names


def _fractions(polygon: Sequence[float], size: tuple[int, int]) -> str:
    height, width = size
    points = np.reshape(polygon, (-1, 2)) / (width, height)
    return " ".join(f"{value:.6g}" for value in points.ravel())


def _put_image(record: ImageRecord, image_dir: Path, target: Path, copy: bool) -> str:
    """Links, copies or converts an image; returns its name there.

    Args:
        target: without suffix.
    """
    source = find_file(image_dir / record.file_name)
    suffix = source.suffix.lower()
    usable = suffix in _SUFFIXES and not is_turned(source)
    target = target.with_name(target.name + (suffix if usable else ".png"))
    if not usable:
        cv2.imwrite(str(target), read_record(record, image_dir)[..., ::-1])
    elif copy:
        shutil.copyfile(source, target)
    else:
        link_or_copy(source, target)
    return target.name
