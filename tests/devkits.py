"""Small data sets in the layouts in which VOC 2012, SBD, COCO, COB and CIM are published."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

VOID = 255
COCO_IDS = sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""The 80 category ids of COCO."""


@dataclass(frozen=True)
class Picture:
    """An image with objects: `labels` (H, W) of 0, 1..n and 255, and the classes of 1..n."""

    labels: np.ndarray
    classes: tuple[int, ...]


def picture(size: tuple[int, int], classes: tuple[int, ...], void: bool = True) -> Picture:
    """Objects side by side in vertical bars, with a void border between them if wanted."""
    height, width = size
    labels = np.zeros(size, np.uint8)
    edges = np.linspace(1, width - 1, len(classes) + 1).astype(int)
    for number, (left, right) in enumerate(zip(edges, edges[1:], strict=False), 1):
        labels[1 + number % 2 : height - 1, left:right] = number
        if void:
            labels[1 + number % 2 : height - 1, left] = VOID
    return Picture(labels, classes)


def class_map(picture: Picture) -> np.ndarray:
    """(H, W) uint8: the class of every pixel, 0 and 255 as in `labels`."""
    table = np.zeros(256, np.uint8)
    table[VOID] = VOID
    table[1 : 1 + len(picture.classes)] = picture.classes
    return table[picture.labels]


def write_voc(
    root: Path,
    train: dict[str, Picture],
    val: dict[str, Picture],
    images_only: dict[str, Picture] | None = None,
) -> Path:
    """VOCdevkit/VOC2012 under `root`; `images_only` are images without segmentation."""
    voc = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass"):
        (voc / folder).mkdir(parents=True)
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{name}\n" for name in train))
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in val))
    rng = np.random.default_rng(0)
    for name, one in {**train, **val, **(images_only or {})}.items():
        pixels = rng.integers(0, 256, (*one.labels.shape, 3), np.uint8)
        Image.fromarray(pixels).save(voc / "JPEGImages" / f"{name}.jpg")
    for name, one in {**train, **val}.items():
        save_palette(voc / "SegmentationObject" / f"{name}.png", one.labels)
        save_palette(voc / "SegmentationClass" / f"{name}.png", class_map(one))
    return voc


def save_palette(path: Path, indices: np.ndarray) -> None:
    """A palette PNG with the colours of VOC (bits of the index spread over the channels)."""
    index = np.arange(256, dtype=np.int32)
    colours = np.zeros((256, 3), np.int32)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    image = Image.fromarray(indices, mode="P")
    image.putpalette(colours.ravel().tolist())
    image.save(path)


def write_sbd(root: Path, train: dict[str, Picture], val: dict[str, Picture]) -> Path:
    """benchmark_RELEASE/dataset under `root`."""
    sbd = root / "benchmark_RELEASE" / "dataset"
    for folder in ("inst", "cls"):
        (sbd / folder).mkdir(parents=True)
    (sbd / "train.txt").write_text("".join(f"{name}\n" for name in train))
    (sbd / "val.txt").write_text("".join(f"{name}\n" for name in val))
    for name, one in {**train, **val}.items():
        boundaries = np.empty((len(one.classes), 1), object)
        for i in range(len(boundaries)):
            boundaries[i, 0] = np.zeros(one.labels.shape, bool)
        instances = {
            "Segmentation": one.labels,
            "Boundaries": boundaries,
            "Categories": np.array(one.classes, np.uint8).reshape(-1, 1),
        }
        classes = {
            "Segmentation": class_map(one),
            "CategoriesPresent": np.unique(one.classes).astype(np.uint8).reshape(-1, 1),
        }
        scipy.io.savemat(sbd / "inst" / f"{name}.mat", {"GTinst": instances}, do_compression=True)
        scipy.io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": classes}, do_compression=True)
    return sbd


def write_coco(root: Path, split: str, pictures: dict[int, Picture], crowd: bool = False) -> Path:
    """coco2017/<split> and its annotations under `root`; classes are COCO's category ids.

    Masks are compressed RLE, of the first object of an image a polygon around it. A crowd, with
    uncompressed runs as in COCO, covers the last image if wanted.
    """
    images = _write_images(root / "coco2017" / split, pictures)
    annotations: list[dict[str, Any]] = []
    for image_id, one in pictures.items():
        for number, category_id in enumerate(one.classes, 1):
            mask = one.labels == number
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            rows, columns = np.nonzero(mask)
            left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            corners = [left, top, right, top, right, bottom, left, bottom]
            packed = {"size": rle["size"], "counts": rle["counts"].decode()}
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "segmentation": [[float(v) for v in corners]] if number == 1 else packed,
                    "area": float(mask.sum()),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
    if crowd:
        height, width = images[-1]["height"], images[-1]["width"]
        runs = {"size": [height, width], "counts": [0, height * width]}
        entry = {"image_id": images[-1]["id"], "category_id": COCO_IDS[-1], "segmentation": runs}
        size = {"area": height * width, "bbox": [0, 0, width, height], "iscrowd": 1}
        annotations.append(entry | size)
    content = {"images": images, "categories": _coco_categories()}
    content["annotations"] = [{"id": 900 + i, **entry} for i, entry in enumerate(annotations)]
    return _write_annotations(root, f"instances_{split}.json", content)


def write_coco_test(root: Path, pictures: dict[int, Picture]) -> Path:
    """coco2017/test2017 and image_info_test-dev2017.json, which has no annotations."""
    images = _write_images(root / "coco2017" / "test2017", pictures)
    content = {"images": images, "categories": _coco_categories()}
    return _write_annotations(root, "image_info_test-dev2017.json", content)


def _write_images(folder: Path, pictures: dict[int, Picture]) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    entries = []
    for image_id, one in pictures.items():
        height, width = one.labels.shape
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{image_id:012}.jpg")
        name = {"id": image_id, "file_name": f"{image_id:012}.jpg"}
        entries.append({**name, "height": height, "width": width})
    return entries


def _coco_categories() -> list[dict[str, Any]]:
    return [{"id": i, "name": f"thing {i}", "supercategory": "things"} for i in COCO_IDS]


def _write_annotations(root: Path, name: str, content: dict[str, Any]) -> Path:
    path = root / "coco2017" / "annotations" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def cob_masks(one: Picture) -> np.ndarray:
    """(P, H, W) bool: the objects, their upper halves and the background."""
    objects = [one.labels == n for n in range(1, 1 + len(one.classes))]
    upper = np.arange(one.labels.shape[0])[:, None] < one.labels.shape[0] // 2
    return np.stack([*objects, *(mask & upper for mask in objects), one.labels == 0])


def write_cob_cells(path: Path, masks: np.ndarray) -> None:
    """As published for VOC: a cell of masks."""
    cells = np.empty((len(masks), 1), object)
    for i, mask in enumerate(masks):
        cells[i, 0] = mask.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"maskmat": cells}, do_compression=True)


def write_cob_array(path: Path, masks: np.ndarray) -> None:
    """As published for COCO: an array (P, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"maskmat": masks.astype(np.uint8)}, do_compression=True)


def write_label_assign(path: Path, matrices: Iterable[tuple[Any, np.ndarray]]) -> None:
    """The clusters of a split: (image id, matrix) of every image."""
    indexes, mat = zip(*matrices, strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"indexes": list(indexes), "mat": list(mat)}))


def write_cob_pickle(path: Path, proposals: Iterable[tuple[Any, np.ndarray, np.ndarray]]) -> None:
    """The proposals of a split: (image id, 7x7 masks, boxes) of every image."""
    indexes, masks, boxes = zip(*proposals, strict=True)
    content = {"indexes": list(indexes), "masks": list(masks), "boxes": list(boxes)}
    content["scores"] = [np.ones(len(b), np.float32) for b in boxes]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))
