"""Labels as the categories of a COCO json."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lib.data.coco import image_labels, read_coco
from lib.data.tags.base import ImageTags


def read_coco_tags(path: str | Path) -> ImageTags:
    """Reads the categories that each image of a COCO json shows, and its ids.

    Masks, boxes and sizes need not be there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `lib.data.coco.read_coco`; or no label at all.
    """
    content = read_coco(path, sizes=False)
    labels = image_labels(content)
    if not labels.any():
        raise ValueError(f"{path}: no image has a label")
    images, categories = content["images"], content["categories"]
    return ImageTags(
        tuple(category["name"] for category in categories),
        {
            image["file_name"]: tuple(np.flatnonzero(row).tolist())
            for image, row in zip(images, labels, strict=True)
        },
        tuple(category["id"] for category in categories),
        {image["file_name"]: image["id"] for image in images},
        {image["id"]: image["original_id"] for image in images if "original_id" in image},
    )
