"""Data sets: draw the embedded one, prepare PASCAL VOC."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.data.shapes import NUM_IMAGES, make_shapes
from lib.data.voc import (
    Prepared,
    check_replaceable,
    find_voc,
    prepare_from_labels,
    prepare_trainaug,
    prepare_val,
    write_split,
)


def main(argv: Sequence[str] | None = None) -> int:
    commands = {"shapes": cli.Command(shapes, shapes_options), "voc": cli.Command(voc, voc_options)}
    return cli.run_tool(__doc__, commands, argv)


def shapes_options(parser: cli.Parser) -> None:
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="writes DIR/shapes (default: data)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    for split, count in NUM_IMAGES.items():
        parser.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"images (default: {count})"
        )


def shapes(args: cli.Namespace) -> None:
    """Draw the embedded data set: small images of shapes, with annotations as COCO json."""
    made = make_shapes(args.root, args.seed, {s: getattr(args, s) for s in NUM_IMAGES})
    print(f"{args.root}/shapes: {'made' if made else 'complete already, nothing to do'}")


def voc_options(parser: cli.Parser) -> None:
    parser.add_argument(
        "--voc",
        type=Path,
        metavar="DIR",
        default=Path("data/VOC2012"),
        help="VOC2012 devkit (default: %(default)s)",
    )
    trainaug = parser.add_mutually_exclusive_group()
    trainaug.add_argument(
        "--sbd",
        type=Path,
        metavar="DIR",
        help="SBD's benchmark_RELEASE; without it only val is written",
    )
    trainaug.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="image-level labels instead of SBD: lines `name class-id ...`, classes from 0; "
        "voc_2012_trainaug.json then has no masks, which training does not need",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the json files (default: annotations beside JPEGImages)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace json files that were made elsewhere"
    )
    parser.add_argument("--jobs", type=int, default=-1, help="processes (default: one per core)")


def voc(args: cli.Namespace) -> int:
    """Turn a VOC2012 devkit and an SBD folder into voc_2012_trainaug.json and voc_2012_val.json."""
    output = args.output or find_voc(args.voc) / "annotations"
    with_trainaug = args.sbd is not None or args.labels is not None
    paths = {split: output / f"voc_2012_{split}.json" for split in ("val", "trainaug")}
    for split, path in paths.items():
        if path.is_file() and not args.overwrite and (split == "val" or with_trainaug):
            check_replaceable(path)
    code = write("val", prepare_val(args.voc, args.jobs), paths["val"])
    if not with_trainaug:
        print(f"neither --sbd nor --labels given: {paths['trainaug'].name} is not written")
        return code
    if args.labels is not None:
        prepared = prepare_from_labels(args.voc, args.labels, args.jobs)
    else:
        prepared = prepare_trainaug(args.voc, args.sbd, args.jobs)
    return code | write("trainaug", prepared, paths["trainaug"])


def write(split: str, prepared: Prepared, path: Path) -> int:
    print(write_split(split, prepared, path))
    images = len(prepared.json["images"]) + len(prepared.missing)
    return cli.report_failures(prepared.missing, images)


if __name__ == "__main__":
    sys.exit(main())
