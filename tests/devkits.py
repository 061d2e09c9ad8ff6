"""Small data sets in the layouts in which VOC 2012, SBD and COCO are published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

VOID = 255


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
