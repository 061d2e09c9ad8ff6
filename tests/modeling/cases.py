"""Random images with proposals and scores, small and full of ties."""

import numpy as np
import torch

from lib.structures import Sample, Scores


def random_masks(rng, num, height=6, width=7):
    """(num, height, width) bool: rectangles and unions of them, never empty, some twice."""
    masks = np.zeros((num, height, width), bool)
    for mask in masks:
        for _ in range(rng.integers(1, 3)):
            y, x = rng.integers(height), rng.integers(width)
            mask[y : y + rng.integers(1, height), x : x + rng.integers(1, width)] = True
    if num > 3:
        masks[rng.integers(num)] = masks[rng.integers(num)]
    if num > 5 and rng.random() < 0.3:
        masks[rng.integers(num)] = True
    return masks


def random_scores(rng, num, num_classes, num_stages=3, levels=None):
    """Scores of P proposals; with `levels`, only that many different values, so that many tie."""

    def draw(*shape):
        values = rng.random((*shape, num, num_classes + 1))
        if levels is not None:
            values = np.floor(values * levels) / levels
        return torch.from_numpy(values.astype(np.float32))

    # A sum over the proposals of cls_prob * det_prob stays below 1, as with true scores.
    return Scores(draw(), draw() / max(num, 1), draw(num_stages), draw(num_stages))


def random_labels(rng, num_classes):
    labels = (rng.random(num_classes) < 0.5).astype(np.float32)
    labels[rng.integers(num_classes)] = 1
    return labels


def make_sample(image_labels, cluster_id, cluster_column, **others):
    """A sample of which only the labels and clusters, and `others`, are there."""
    empty = dict.fromkeys(("image", "boxes", "roi_masks", "membership", "areas"))
    return Sample(
        image_id=1,
        file_name="image.png",
        image_labels=torch.as_tensor(image_labels),
        cluster_id=torch.as_tensor(cluster_id),
        cluster_column=torch.as_tensor(cluster_column),
        **{**empty, **others},
    )
