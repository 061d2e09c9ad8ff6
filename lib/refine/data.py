"""Pseudo labels, the masks that CIM found, as samples for training a Mask R-CNN.

Labels that somebody has corrected take the place of those of their images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lib.data.coco import CocoImages, ImageRecord, read_coco
from lib.data.custom import ImageIndex, find_files
from lib.data.images import read_image
from lib.data.loader import ImageDataset
from lib.data.transforms import (
    Flip,
    mask_boxes,
    mirror_image,
    mirror_roi_masks,
    normalise,
    resize_long_side,
)
from lib.evaluation.coco_files import by_image
from lib.files import first_few, read_json
from lib.proposals.rle import masks_of
from lib.refine.mosaics import Mosaic, compose, draw_mosaics
from lib.structures import InstanceSample, ReadInstances

logger = logging.getLogger(__name__)

Instances = dict[int, list[dict[str, Any]]]
"""By image id, entries with `category_id` and `segmentation` (compressed RLE), and `box_only` True
where that is a box. An image with none is all background; one that is not listed is not known."""


class InstanceDataset(ImageDataset):
    """The images of a data set with the instances to train on.

    Mosaics have the indices behind those of the images.

    Args:
        instances: see `Instances`; images that are not listed are not trained on.
        memory_limit: see ImageDataset.
        corrected: the file of corrected labels among them.
    """

    label_name = "pseudo label"

    def __init__(
        self,
        coco: CocoImages,
        image_dir: str | Path,
        instances: Mapping[int, Sequence[Mapping[str, Any]]],
        memory_limit: int = 0,
        corrected: Path | None = None,
    ) -> None:
        layers = (3 + len(instances.get(record.image_id, ())) for record in coco.images)
        pixels = (record.height * record.width for record in coco.images)
        num_bytes = sum(a * b for a, b in zip(layers, pixels, strict=True))
        super().__init__(coco, image_dir, num_bytes, memory_limit)
        self.instances = instances
        self.corrected = corrected
        self.box_only = sum(bool(e.get("box_only")) for of in instances.values() for e in of)
        """Instances of which only the box is known."""
        self.mosaics: list[Mosaic] = []
        self._class_of = {category: c for c, category in enumerate(coco.category_ids)}

    def labelled(self) -> list[int]:
        """Indices of the images that can be trained on: those whose instances are known."""
        return [n for n, image in enumerate(self.coco.images) if image.image_id in self.instances]

    def add_mosaics(self, share: float, seed: int) -> None:
        """Adds `share` mosaics for every labelled image, see lib/refine/mosaics.py."""
        labelled = self.labelled()
        of = {index: self.instances[self.coco.images[index].image_id] for index in labelled}
        self.mosaics = draw_mosaics(of, round(share * len(labelled)), seed)
        if share:
            logger.info("mosaics of several images: %d", len(self.mosaics))

    def drawn(self) -> list[int]:
        """The images and mosaics that a training draws from."""
        return [*self.labelled(), *range(len(self), len(self) + len(self.mosaics))]

    def read(self, index: int) -> ReadInstances:
        """Reads image `index`, or makes a mosaic."""
        if index < len(self):
            return super().read(index)
        mosaic = self.mosaics[index - len(self)]
        return compose([self.read(part) for part in mosaic.parts], mosaic.seed)

    def _read(self, record: ImageRecord) -> ReadInstances:
        entries = self.instances.get(record.image_id, ())
        masks = [not entry.get("box_only") for entry in entries]
        return ReadInstances(
            record,
            read_image(self.image_dir / record.file_name, record.size),
            masks_of(entries, record.size).astype(np.uint8),
            np.array([self._class_of[entry["category_id"]] for entry in entries], np.int64),
            None if all(masks) else np.array(masks, bool),
        )

    def view(self, read: ReadInstances, long_side: int, flip: Flip = "none") -> InstanceSample:
        """Mirrors an image and then scales it to `long_side`; instances without a pixel left are
        dropped."""
        image, _ = resize_long_side(mirror_image(read.image, flip), long_side)
        height, width = image.shape[:2]
        masks = [
            cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
            for mask in mirror_roi_masks(read.masks, flip)
        ]
        masks = np.array(masks, np.uint8).reshape(-1, height, width)
        there = masks.any(axis=(1, 2))
        masks = torch.from_numpy(masks[there])  # (N, h, w)
        return InstanceSample(
            image_id=read.record.image_id,
            file_name=read.record.file_name,
            image=normalise(image),
            boxes=mask_boxes(masks),
            class_idx=torch.from_numpy(read.class_idx[there]),
            masks=masks,
            has_mask=None if read.has_mask is None else torch.from_numpy(read.has_mask[there]),
        )


def open_pseudo_labels(
    path: Path, image_dir: Path, memory_limit: int = 0, corrected: Path | None = None
) -> InstanceDataset:
    """Reads the pseudo labels of a COCO json and checks that they can be trained on.

    Images without a pseudo label are left out: they contain an object (they have an image-level
    label), so they are no examples of background.

    Args:
        corrected: see `read_corrected`; what it says of an image takes the place of pseudo labels.

    Raises:
        FileNotFoundError: the json or images are missing.
        ValueError: a mistake in a json; annotations without a score, which are somebody's masks
            and trained on only as `corrected`; no annotation at all.
    """
    coco = CocoImages(path)
    coco.check_files(image_dir)
    content = read_json(path)
    unscored = [a.get("id") for a in content["annotations"] if a.get("score") is None]
    if unscored:
        raise ValueError(
            f"{path}: {len(unscored)} annotations have no score (ids {unscored[0]}"
            f"{', ...' if unscored[1:] else ''}); expected pseudo labels, which have one and are "
            "made by tools/generate_pseudo_labels.py; annotated masks are never trained on, unless "
            "they are given as --corrected"
        )
    instances = by_image(content, read_coco(path), str(path))
    if corrected is not None:
        complete = read_corrected(corrected, coco, image_dir)
        instances = {**instances, **complete}
        logger.info("%d further images have pseudo labels", len(instances) - len(complete))
    if not instances:
        raise ValueError(
            f"{path}: it has no pseudo label; make them with --select adaptive or a lower "
            "--score-thresh, or train CIM longer"
        )
    return InstanceDataset(coco, image_dir, instances, memory_limit, corrected)


def read_corrected(path: Path, coco: CocoImages, image_dir: Path) -> Instances:
    """Reads a COCO json that somebody has corrected in an annotation tool.

    All images that it lists count as complete: what it does not annotate in them is background,
    and an image without annotations is empty. Images are found by their names, see `ImageIndex`,
    and categories by theirs; ids do not count. An annotation without a mask counts by its box.
    Those that are marked `iscrowd` count as one object each (CVAT marks masks of its brush so).

    Args:
        coco: the images of the data set.

    Raises:
        FileNotFoundError: images that are not in the data set.
        ValueError: a mistake in the json, images of another size, categories that the data set
            does not have; or none of the annotations can be drawn.
    """
    content = read_coco(path, masks=True, boxes=True)
    index = ImageIndex(image_dir, files=[record.file_name for record in coco.images])
    files = find_files([image["file_name"] for image in content["images"]], index, path)
    records = {record.file_name: record for record in coco.images}
    record_of = {image["id"]: records[files[image["file_name"]]] for image in content["images"]}
    for image in content["images"]:
        size, record = (image["height"], image["width"]), record_of[image["id"]]
        if size != record.size:
            raise ValueError(
                f"{path}: {image['file_name']} is {size[0]}x{size[1]} (height x width), the data "
                f"set's is {record.size[0]}x{record.size[1]}; correct its images as they are"
            )
    category_of = _same_names(content, coco, path)
    instances: Instances = {record.image_id: [] for record in record_of.values()}
    for annotation in content["annotations"]:
        image_id = record_of[annotation["image_id"]].image_id
        instances[image_id].append(
            {
                "category_id": category_of[annotation["category_id"]],
                "segmentation": annotation["segmentation"],
                "box_only": annotation.get("box_only", False),
            }
        )
    _tell_corrected(path, content, coco, instances)
    return instances


def _same_names(content: dict[str, Any], coco: CocoImages, path: Path) -> dict[int, int]:
    """The data set's category id of every category in use, by name, if need be in other case."""
    exact = dict(zip(coco.class_names, coco.category_ids, strict=True))
    folded: dict[str, list[int]] = {}
    for name, category_id in exact.items():
        folded.setdefault(name.strip().casefold(), []).append(category_id)
    used = {annotation["category_id"] for annotation in content["annotations"]}
    category_of, unknown = {}, []
    for category in content["categories"]:
        name = category["name"]
        near = [exact[name]] if name in exact else folded.get(name.strip().casefold(), [])
        if len(near) == 1:
            category_of[category["id"]] = near[0]
        elif category["id"] in used:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{path}: annotations of categories that the data set does not have: "
            f"{first_few(unknown)}; it has {first_few(coco.class_names)}"
        )
    return category_of


def _tell_corrected(
    path: Path, content: dict[str, Any], coco: CocoImages, instances: Instances
) -> None:
    entries = [entry for of in instances.values() for entry in of]
    logger.info(
        "%s: %d of %d images are corrected and count as complete, with %d objects, %d of them with "
        "a box alone",
        path,
        len(instances),
        len(coco),
        len(entries),
        sum(entry["box_only"] for entry in entries),
    )
    names = {record.image_id: record.file_name for record in coco.images}
    if empty := [names[image_id] for image_id, of in instances.items() if not of]:
        logger.warning(f"{path}: {len(empty)} of these are without objects: {first_few(empty)}")
    if len(instances) == len(coco):
        logger.warning(
            f"{path}: it lists every image of the data set; if nobody has looked at some of them, "
            "export only the others: what is not annotated in a listed image is background"
        )
    if crowds := sum(annotation["iscrowd"] for annotation in content["annotations"]):
        logger.info("%s: %d annotations are marked iscrowd; each is an object here", path, crowds)
