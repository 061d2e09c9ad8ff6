"""Proposals of a library alone, to compare with: felzenszwalb segments at many scales.

All segments of scikit-image's felzenszwalb at five scales, without equal ones, the largest scales
first. docs/proposals.md holds their recall beside that of tools/make_proposals.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from skimage.segmentation import felzenszwalb

from lib.command_line import errors_in_a_line
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages, ImageRecord
from lib.data.images import read_image
from lib.parallel import failures_text, for_each
from lib.proposals import _regions
from lib.proposals.regions import encode_unions
from lib.proposals.store import ProposalStore
from lib.structures import Regions

SCALES = (1500, 600, 250, 100, 40)


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_dataset_arguments(parser)
    parser.add_argument("--max-proposals", type=int, default=1000, metavar="N")
    parser.add_argument("--jobs", type=int, default=-1, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    dataset = dataset_from_args(args)
    if args.proposals is None:
        raise ValueError("give --proposals DIR, so that no better proposals are overwritten")
    images = CocoImages(dataset.json, require_annotations=False).images
    store = ProposalStore(dataset.proposals)
    tasks = ((i.file_name, (dataset.images, i, store, args.max_proposals)) for i in images)
    _, failures = for_each(make_one, tasks, len(images), args.jobs, "baseline")
    if failures:
        print(failures_text(failures, len(images)), file=sys.stderr)
        return 1
    return 0


def make_one(folder: Path, image: ImageRecord, store: ProposalStore, count: int) -> None:
    pixels = read_image(folder / image.file_name, image.size)
    store.save(image.file_name, felzenszwalb_segments(pixels, count))


def felzenszwalb_segments(image: np.ndarray, max_proposals: int) -> Regions:
    """Segments of all scales as unions of the cells that the scales have in common."""
    layers = [felzenszwalb(image, scale=s, sigma=0.6, min_size=60) for s in SCALES]
    pixels = np.stack(layers, axis=-1).astype(np.int32).reshape(-1, len(layers))
    number, first, _ = _regions.number_keys(pixels.view(np.uint8))
    cells = pixels[first]  # (N, scales): what segment of every scale a cell lies in
    members = [np.arange(column.max() + 1)[:, None] == column for column in cells.T]
    distinct = list(dict.fromkeys(row.tobytes() for rows in members for row in rows))
    chosen = np.frombuffer(b"".join(distinct[:max_proposals]), bool).reshape(-1, len(cells))
    return encode_unions(number.reshape(image.shape[:2]), chosen)


if __name__ == "__main__":
    sys.exit(main())
