"""Proposals for the images of a data set, made in parallel and stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from lib.parallel import for_each
from lib.proposals.store import ProposalStore
from lib.provenance import MadeFrom
from lib.structures import ImageRecord, Regions


def make_all(
    store: ProposalStore,
    images: Sequence[ImageRecord],
    read: Callable[[ImageRecord], np.ndarray],
    generate: Callable[[np.ndarray], Regions],
    made_from: Mapping[str, MadeFrom],
    jobs: int = -1,
) -> tuple[dict[str, int], dict[str, str]]:
    """Generates and stores the proposals of every image, replacing what is there.

    Args:
        read: gives the pixels of an image, (H, W, 3) uint8 RGB.
        generate: gives the proposals of these pixels.
        made_from: their records, by file name.
        jobs: processes; -1 is one per core.

    Returns:
        (number of proposals by file name, reason by file name of images that failed).
    """
    tasks = (
        (image.file_name, (store, image, read, generate, made_from[image.file_name]))
        for image in images
    )
    return for_each(_make_one, tasks, len(images), jobs, "proposals")


def _make_one(
    store: ProposalStore,
    image: ImageRecord,
    read: Callable[[ImageRecord], np.ndarray],
    generate: Callable[[np.ndarray], Regions],
    made_from: MadeFrom,
) -> int:
    cv2.setNumThreads(1)  # the processes already share the cores
    regions = generate(read(image))
    store.save(image.file_name, regions, made_from)
    return regions.num_proposals
