"""Turns a VOC2012 devkit and an SBD folder into voc_2012_trainaug.json and voc_2012_val.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.command_line import errors_in_a_line
from lib.data.voc import NUM_IMAGES, Prepared, find_voc, prepare_trainaug, prepare_val
from lib.files import write_json
from lib.parallel import failures_text


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--voc", metavar="DIR", default="data/VOC2012", help="VOC2012 devkit (default: %(default)s)"
    )
    parser.add_argument(
        "--sbd", metavar="DIR", help="SBD's benchmark_RELEASE; without it only val is written"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the json files (default: annotations beside JPEGImages)",
    )
    parser.add_argument("--jobs", type=int, default=-1, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    output = Path(args.output) if args.output else find_voc(args.voc) / "annotations"
    complete = write_split("val", prepare_val(args.voc, args.jobs), output)
    if args.sbd is None:
        print("no --sbd given: voc_2012_trainaug.json is not written")
    else:
        trainaug = prepare_trainaug(args.voc, args.sbd, args.jobs)
        complete &= write_split("trainaug", trainaug, output)
    return 0 if complete else 1


def write_split(split: str, prepared: Prepared, folder: Path) -> bool:
    """Writes the json, says what is in it, and returns whether no listed image is missing."""
    path = folder / f"voc_2012_{split}.json"
    images, objects = prepared.json["images"], prepared.json["annotations"]
    total = len(images) + len(prepared.missing)
    if not images:
        reason = next(iter(prepared.missing.values()), "its list is empty")
        raise ValueError(f"none of the {total} images of {split} could be read: {reason}")
    write_json(path, prepared.json)
    print(
        f"{path}: {len(images)} images ({prepared.from_voc} annotated by VOC, "
        f"{len(images) - prepared.from_voc} by SBD) with {len(objects)} objects"
    )
    if total != NUM_IMAGES[split]:
        print(f"  the lists name {total} images; the whole of {split} has {NUM_IMAGES[split]}")
    if prepared.missing:
        print(failures_text(prepared.missing, total), file=sys.stderr)
    return not prepared.missing


if __name__ == "__main__":
    sys.exit(main())
