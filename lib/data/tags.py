"""Image-level labels: where all that training knows about the content of an image comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def labels_from_annotations(
    annotations: Sequence[dict], image_ids: Sequence[int], category_ids: Sequence[int]
) -> np.ndarray:
    """Which categories are annotated in which image; crowds (`iscrowd` 1) do not count.

    Args:
        annotations: COCO annotations of which `image_id`, `category_id` and, if there,
            `iscrowd` are read, and nothing else.

    Returns:
        (number of images, C) float32 in {0, 1}, in the orders of the ids given.
    """
    row = {image_id: number for number, image_id in enumerate(image_ids)}
    column = {category_id: number for number, category_id in enumerate(category_ids)}
    labels = np.zeros((len(row), len(column)), np.float32)
    for annotation in annotations:
        if not annotation.get("iscrowd", 0):
            labels[row[annotation["image_id"]], column[annotation["category_id"]]] = 1
    return labels
