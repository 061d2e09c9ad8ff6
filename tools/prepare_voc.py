"""Turns a VOC2012 devkit and an SBD folder into voc_2012_trainaug.json and voc_2012_val.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.command_line import errors_in_a_line
from lib.data.voc import (
    MADE_BY,
    NUM_IMAGES,
    Prepared,
    find_voc,
    prepare_from_labels,
    prepare_trainaug,
    prepare_val,
)
from lib.files import read_json, write_json
from lib.parallel import failures_text


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--voc", metavar="DIR", default="data/VOC2012", help="VOC2012 devkit (default: %(default)s)"
    )
    trainaug = parser.add_mutually_exclusive_group()
    trainaug.add_argument(
        "--sbd", metavar="DIR", help="SBD's benchmark_RELEASE; without it only val is written"
    )
    trainaug.add_argument(
        "--labels",
        metavar="FILE",
        help="image-level labels instead of SBD: lines `name class-id ...`, classes from 0; "
        "voc_2012_trainaug.json then has no masks, which training does not need",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the json files (default: annotations beside JPEGImages)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace json files that were made elsewhere"
    )
    parser.add_argument("--jobs", type=int, default=-1, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    return run(args)


def run(args: argparse.Namespace) -> int:
    output = Path(args.output) if args.output else find_voc(args.voc) / "annotations"
    with_trainaug = args.sbd is not None or args.labels is not None
    paths = {split: output / f"voc_2012_{split}.json" for split in ("val", "trainaug")}
    for split, path in paths.items():
        if path.is_file() and not args.overwrite and (split == "val" or with_trainaug):
            check_replaceable(path)
    complete = write_split("val", prepare_val(args.voc, args.jobs), paths["val"])
    if not with_trainaug:
        print(f"neither --sbd nor --labels given: {paths['trainaug'].name} is not written")
        return 0 if complete else 1
    if args.labels is not None:
        prepared = prepare_from_labels(args.voc, args.labels, args.jobs)
    else:
        prepared = prepare_trainaug(args.voc, args.sbd, args.jobs)
    complete &= write_split("trainaug", prepared, paths["trainaug"])
    return 0 if complete else 1


def check_replaceable(path: Path) -> None:
    """Raises ValueError for a json that was not made here."""
    content = read_json(path)
    info = content.get("info") if isinstance(content, dict) else None
    told = info.get("description") if isinstance(info, dict) else None
    if not str(told).startswith(MADE_BY):
        raise ValueError(
            f"{path}: made elsewhere, and can be used as it is; --overwrite replaces it, --output "
            "writes to another folder"
        )


def write_split(split: str, prepared: Prepared, path: Path) -> bool:
    """Writes the json, says what is in it, and returns whether no listed image is missing."""
    images, annotations = prepared.json["images"], prepared.json["annotations"]
    total = len(images) + len(prepared.missing)
    if not images:
        reason = next(iter(prepared.missing.values()), "its list is empty")
        raise ValueError(f"none of the {total} images of {split} could be read: {reason}")
    write_json(path, prepared.json)
    told = ", ".join(f"{count} by {source}" for source, count in prepared.sources.items())
    what = "objects" if all("segmentation" in a for a in annotations) else "labels"
    print(f"{path}: {len(images)} images (annotated: {told}) with {len(annotations)} {what}")
    if total != NUM_IMAGES[split]:
        print(f"  the lists name {total} images; the whole of {split} has {NUM_IMAGES[split]}")
    if prepared.missing:
        print(failures_text(prepared.missing, total), file=sys.stderr)
    return not prepared.missing


if __name__ == "__main__":
    sys.exit(main())
