"""Makes mask proposals for every image of a data set and keeps them in its proposal store."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from lib.command_line import errors_in_a_line
from lib.config import ConfigError, load_config
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages, ImageRecord
from lib.data.images import read_image
from lib.parallel import add_parallel_arguments, failures_text, for_each, workers_from_args
from lib.proposals.generate import generate_proposals
from lib.proposals.store import ProposalStore


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", metavar="FILE", help="its section `proposals` is used")
    add_dataset_arguments(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="also images that have proposals already"
    )
    add_parallel_arguments(parser)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_args(argv)
    with workers_from_args(args):
        return run(args)


def run(args: argparse.Namespace) -> int:
    settings = load_config(args.cfg, args.set).proposals
    _check_options(settings.options)
    dataset = dataset_from_args(args)
    images = CocoImages(dataset.json, require_annotations=False).images
    store = ProposalStore(dataset.proposals)
    todo = [i for i in images if args.overwrite or not store.has(i.file_name)]
    if len(todo) < len(images):
        print(f"{len(images) - len(todo)} of {len(images)} images have proposals already")
    if not todo:
        return 0
    tasks = (
        (i.file_name, (dataset.images, i, store, settings.max_proposals, settings.options))
        for i in todo
    )
    counts, failures = for_each(make_one, tasks, len(todo), args.jobs, "proposals")
    print(f"{store.folder}: {sum(counts.values())} proposals of {len(counts)} images stored")
    if failures:
        print(failures_text(failures, len(todo)), file=sys.stderr)
        return 1
    return 0


def make_one(
    folder: Path, image: ImageRecord, store: ProposalStore, count: int, options: dict[str, Any]
) -> int:
    """Makes and stores the proposals of one image; returns how many."""
    cv2.setNumThreads(1)  # the processes already share the cores
    regions = generate_proposals(read_image(folder / image.file_name, image.size), count, **options)
    store.save(image.file_name, regions)
    return regions.num_proposals


def _check_options(options: dict[str, Any]) -> None:
    parameters = inspect.signature(generate_proposals).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"proposals.options: unknown {', '.join(unknown)}; known: {', '.join(known)}"
        )


if __name__ == "__main__":
    sys.exit(main())
