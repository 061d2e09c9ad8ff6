"""Pseudo labels, the masks that CIM found, as samples for training a Mask R-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lib.data.coco import CocoImages, ImageRecord, read_coco
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
from lib.files import read_json
from lib.proposals.rle import masks_of
from lib.structures import InstanceSample


@dataclass(frozen=True, eq=False)
class ReadInstances:
    """Image and instances before scaling and mirroring."""

    record: ImageRecord
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    masks: np.ndarray
    """(N, H, W) uint8 in {0, 1}."""
    class_idx: np.ndarray
    """(N,) int64, 0..C-1."""


class InstanceDataset(ImageDataset):
    """The images of a data set with the instances to train on.

    Args:
        instances: by image id, entries with `category_id` and `segmentation` (compressed RLE).
            Images without any are not trained on.
        memory_limit: see ImageDataset.
    """

    label_name = "pseudo label"

    def __init__(
        self,
        coco: CocoImages,
        image_dir: str | Path,
        instances: Mapping[int, Sequence[Mapping[str, Any]]],
        memory_limit: int = 0,
    ) -> None:
        layers = (3 + len(instances.get(record.image_id, ())) for record in coco.images)
        pixels = (record.height * record.width for record in coco.images)
        num_bytes = sum(a * b for a, b in zip(layers, pixels, strict=True))
        super().__init__(coco, image_dir, num_bytes, memory_limit)
        self.instances = instances
        self._class_of = {category: c for c, category in enumerate(coco.category_ids)}

    def labelled(self) -> list[int]:
        """Indices of the images with an instance, which can be trained on."""
        return [n for n, image in enumerate(self.coco.images) if self.instances.get(image.image_id)]

    def _read(self, record: ImageRecord) -> ReadInstances:
        entries = self.instances.get(record.image_id, ())
        return ReadInstances(
            record,
            read_image(self.image_dir / record.file_name, record.size),
            masks_of(entries, record.size).astype(np.uint8),
            np.array([self._class_of[entry["category_id"]] for entry in entries], np.int64),
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
        )


def open_pseudo_labels(path: Path, image_dir: Path, memory_limit: int = 0) -> InstanceDataset:
    """Reads the pseudo labels of a COCO json and checks that they can be trained on.

    Images without a pseudo label are left out: they contain an object (they have an image-level
    label), so they are no examples of background.

    Raises:
        FileNotFoundError: the json or images are missing.
        ValueError: a mistake in the json; annotations without a score, which are somebody's masks
            and never trained on; no annotation at all.
    """
    coco = CocoImages(path)
    coco.check_files(image_dir)
    content = read_json(path)
    unscored = [a.get("id") for a in content["annotations"] if a.get("score") is None]
    if unscored:
        raise ValueError(
            f"{path}: {len(unscored)} annotations have no score (ids {unscored[0]}"
            f"{', ...' if unscored[1:] else ''}); expected pseudo labels, which have one and are "
            "made by tools/generate_pseudo_labels.py; annotated masks are never trained on"
        )
    instances = by_image(content, read_coco(path), str(path))
    if not instances:
        raise ValueError(
            f"{path}: it has no pseudo label; make them with --select adaptive or a lower "
            "--score-thresh, or train CIM longer"
        )
    return InstanceDataset(coco, image_dir, instances, memory_limit)
