"""Mask proposals: make them, import them, check them, and see how good they are."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lib import command_line as cli
from lib.config import load_config
from lib.data.coco import CocoImages
from lib.data.images import read_image, read_record
from lib.evaluation.coco_files import read_ground_truth
from lib.evaluation.proposal_recall import find_objects, recall_table, table_text
from lib.files import write_json
from lib.pipeline.runner import duration
from lib.prm.prompts import generator_record, open_generator
from lib.proposals.baseline import felzenszwalb_segments
from lib.proposals.check import check_store, check_text, compare_with_published, named_text
from lib.proposals.generate import make_all
from lib.proposals.generator import Generate
from lib.proposals.importing import import_all, imports_made_from
from lib.proposals.readers import READERS
from lib.proposals.store import ProposalStore
from lib.provenance import Memory
from lib.structures import ImageRecord, Regions
from lib.visualization.panels import contact_sheet, mask_row, save_png

logger = logging.getLogger("proposals")

ALL = 2**31
"""More proposals than any image has."""


def main(argv: Sequence[str] | None = None) -> int:
    commands = {
        "make": cli.Command(make, make_options),
        "import": cli.Command(import_, import_options),
        "check": cli.Command(check, check_options),
        "recall": cli.Command(recall, recall_options),
        "show": cli.Command(show, show_options),
        "baseline": cli.Command(baseline, baseline_options),
    }
    return cli.run_tool(__doc__, commands, argv)


def make_options(parser: cli.Parser) -> None:
    cli.add_config_arguments(parser, help="its section `proposals` is used")
    cli.add_dataset_arguments(parser)
    add_overwrite(parser)
    cli.add_parallel_arguments(parser)
    cli.add_device_arguments(parser)


def make(args: cli.Namespace) -> int:
    """Make the proposals of the images of a data set that have none, or not up to date ones."""
    config = load_config(args.cfg, args.set)
    on_device = config.proposals.chosen.on_device
    if on_device and args.backend == "dask":
        raise ValueError(
            f"the generator {config.proposals.generator} works on the device of one machine; leave "
            "out --backend dask"
        )
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    made_with = generator_record(config, Memory(args.data_root))
    dataset = cli.dataset_from_args(args)
    images = CocoImages(dataset.json, require_annotations=False).images
    store = ProposalStore(dataset.proposals)
    content = dataset.fingerprints(image.file_name for image in images)
    made_from = {
        image.file_name: {"image": content.get(image.file_name), "settings": made_with}
        for image in images
    }
    names = None if args.overwrite else store.out_of_date(made_from, dataset.memory)
    todo = images_to_do(images, names)
    if not todo:
        return 0
    generate = open_generator(config, args.device)
    if on_device:
        logger.info("%s on %s", config.proposals.generator, args.device)
        generate = Timed(generate, len(todo))
    read = partial(read_record, folder=dataset.images)
    jobs = 1 if on_device else args.jobs
    counts, failures = make_all(store, todo, read, generate, made_from, jobs)
    print(f"{store.folder}: {sum(counts.values())} proposals of {len(counts)} images stored")
    alone = sum(count == 1 for count in counts.values())
    if on_device and alone:
        name = config.proposals.generator
        logger.warning("%d images have one proposal alone; are the limits of %s high?", alone, name)
    return cli.report_failures(failures, len(todo))


class Timed:
    """A generator that says after its first image how long all of them will take."""

    def __init__(self, generate: Generate, images: int) -> None:
        self.generate, self.images, self.told = generate, images, False

    def __call__(self, image: np.ndarray) -> Regions:
        start = time.perf_counter()
        regions = self.generate(image)
        if not self.told:
            seconds = time.perf_counter() - start
            whole = duration(seconds * self.images)
            logger.info("%.1f s for the first of %d images: about %s", seconds, self.images, whole)
            self.told = True
        return regions


def import_options(parser: cli.Parser) -> None:
    parser.add_argument("--format", required=True, choices=sorted(READERS))
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="PATH",
        help="the folder (pickle: the file) to import",
    )
    cli.add_dataset_arguments(parser, needs_images=False)
    parser.add_argument(
        "--drop-empty", action="store_true", help="leave empty masks out (otherwise an error)"
    )
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="leave masks equal to an earlier one out"
    )
    add_overwrite(parser)
    cli.add_parallel_arguments(parser)


def import_(args: cli.Namespace) -> int:
    """Import proposals made elsewhere (COB, Segment Anything, PNG, npz, pickles)."""
    dataset = cli.dataset_from_args(args)
    images = CocoImages(dataset.json, require_annotations=False).images
    store = ProposalStore(dataset.proposals)
    reader = READERS[args.format](args.source)
    content = dataset.fingerprints(image.file_name for image in images)
    options = {"drop_empty": args.drop_empty, "drop_duplicates": args.drop_duplicates}
    made_from = imports_made_from(reader, images, content, dataset.memory, options)
    names = None
    if not args.overwrite:
        names = store.out_of_date(made_from, dataset.memory, keep_imported=False)
        # Images that the source lacks are an error unless they have proposals from elsewhere.
        lacking = [image.file_name for image in images if image.file_name not in made_from]
        names += [name for name in lacking if not store.has(name)]
    todo = images_to_do(images, names)
    if not todo:
        return 0
    total, failures = import_all(
        reader, store, todo, **options, jobs=args.jobs, made_from=made_from
    )
    print(
        f"{store.folder}: {total.stored} proposals of {len(todo) - len(failures)} images stored; "
        f"left out: {total.empty} empty masks, {total.duplicates} duplicates"
    )
    return cli.report_failures(failures, len(todo))


def check_options(parser: cli.Parser) -> None:
    cli.add_dataset_arguments(parser, needs_images=False)
    parser.add_argument(
        "--published",
        type=Path,
        metavar="FILE",
        help="a published cob/*.pkl: are these its proposals, in its order?",
    )
    cli.add_parallel_arguments(parser)


def check(args: cli.Namespace) -> int:
    """Report what the stored proposals of a data set are, and what is wrong with them."""
    dataset = cli.dataset_from_args(args)
    images = CocoImages(dataset.json, require_annotations=False).images
    store = ProposalStore(dataset.proposals)
    found = check_store(store, images, args.jobs)
    print(check_text(found, store, len(images)))
    print_best_recall(dataset.json, store, {*found.missing, *found.wrong_size, *found.faults}, args)
    usable = found.usable
    if args.published is not None:
        agreeing, different = compare_with_published(store, images, args.published, args.jobs)
        print(f"{args.published}: {agreeing} of {len(images)} images agree")
        print(named_text(different, "differ"))
        usable &= not different
    return 0 if usable else 1


def print_best_recall(
    json: Path, store: ProposalStore, unusable: set[str], args: cli.Namespace
) -> None:
    """Prints the best recall of these proposals, where the json has masks."""
    truth = read_ground_truth(json, need_masks=False)
    if not truth["annotations"]:
        print(f"recall: {json} has no masks")
        return
    found = find_objects(store, truth, [ALL], unusable, args.jobs)
    if found.failures:
        print(named_text(found.failures, "left out of the recall"))
    for row in recall_table(found.best, found.areas, [ALL], [0.5, 0.75]):
        if row["recall"]:
            parts = ", ".join(f"{value:.3f} at IoU {t}" for t, value in row["recall"].items())
            print(f"recall of {row['objects']} objects ({row['size']}): {parts}")


def recall_options(parser: cli.Parser) -> None:
    cli.add_dataset_arguments(parser, needs_images=False)
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[100, 500, 1000],
        metavar="N",
        help="numbers of proposals (default: 100 500 1000)",
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=[0.5, 0.7],
        metavar="IOU",
        help="default: 0.5 0.7",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the numbers as JSON"
    )
    cli.add_parallel_arguments(parser)


def recall(args: cli.Namespace) -> int:
    """Print the share of objects with a good proposal, by size and number of proposals.

    The masks of the annotations (without crowds) are used for this report and for nothing else.
    """
    if min(args.counts) < 1:
        raise ValueError(f"--counts has {min(args.counts)}, expected at least 1")
    dataset = cli.dataset_from_args(args)
    store = ProposalStore(dataset.proposals)
    found = find_objects(store, read_ground_truth(dataset.json), args.counts, jobs=args.jobs)
    num_used, num_failed = len(found.num_proposals), len(found.failures)
    if num_used + num_failed == 0:
        raise ValueError(f"{dataset.json}: no annotations but crowds; there is nothing to find")
    if num_used:
        mean = float(np.mean(found.num_proposals))
        rows = recall_table(found.best, found.areas, args.counts, args.thresholds)
        print(f"{num_used} of {num_used + num_failed} images, {mean:.0f} proposals an image")
        print(table_text(rows))
        if args.output:
            content = {"images": num_used, "mean_proposals": mean, "rows": rows}
            write_json(args.output, content, indent=2)
    return cli.report_failures(found.failures, num_used + num_failed)


def show_options(parser: cli.Parser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a PNG file")
    parser.add_argument(
        "--count", type=int, default=9, metavar="N", help="proposals of each image (default: 9)"
    )
    parser.add_argument(
        "--width", type=int, default=160, metavar="PX", help="of each tile (default: 160)"
    )
    cli.add_config_arguments(parser, help="its section `proposals` is used")
    cli.add_device_arguments(parser, threads=False)


def show(args: cli.Namespace) -> None:
    """Make the proposals of some images and draw the first of each, one row an image."""
    generate = open_generator(load_config(args.cfg, args.set), args.device, args.count)
    tiles = []
    for path in args.images:
        image = read_image(path)
        tiles += mask_row(image, generate(image).masks(), args.count)
    save_png(args.output, contact_sheet(tiles, args.count + 1, args.width))


def baseline_options(parser: cli.Parser) -> None:
    cli.add_dataset_arguments(parser)
    parser.add_argument(
        "--max-proposals", type=int, default=1000, metavar="N", help="default: 1000"
    )
    cli.add_parallel_arguments(parser)


def baseline(args: cli.Namespace) -> int:
    """Make proposals by a library alone, to compare with: felzenszwalb segments at five scales.

    docs/proposals.md has their recall beside that of `make`.
    """
    dataset = cli.dataset_from_args(args)
    if args.proposals is None:
        raise ValueError("give --proposals DIR, so that no better proposals are overwritten")
    images = CocoImages(dataset.json, require_annotations=False).images
    generate = partial(felzenszwalb_segments, max_proposals=args.max_proposals)
    read = partial(read_record, folder=dataset.images)
    content = dataset.fingerprints(image.file_name for image in images)
    settings = {"felzenszwalb": {"max_proposals": args.max_proposals}}
    made_from = {name: {"image": image, "settings": settings} for name, image in content.items()}
    store = ProposalStore(dataset.proposals)
    _, failures = make_all(store, images, read, generate, made_from, args.jobs)
    return cli.report_failures(failures, len(images))


def add_overwrite(parser: cli.Parser) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="all images, also those whose proposals are up to date or were imported",
    )


def images_to_do(images: Sequence[ImageRecord], names: list[str] | None) -> list[ImageRecord]:
    """The images with these file names, None for all; says how many are left out."""
    if names is None:
        return list(images)
    todo = [image for image in images if image.file_name in set(names)]
    if len(todo) < len(images):
        print(f"{len(images) - len(todo)} of {len(images)} images have proposals already")
    return todo


if __name__ == "__main__":
    sys.exit(main())
