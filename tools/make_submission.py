"""Packs detections on COCO test-dev as its evaluation server wants them.

The annotations of test-dev are not public; the server compares the detections with them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.command_line import errors_in_a_line
from lib.data.catalog import add_dataset_arguments, dataset_from_args
from lib.data.coco import read_coco
from lib.engine.runs import add_result_arguments, detections_from_args
from lib.evaluation.submission import submission_name, write_submission
from lib.files import read_json


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--algorithm", metavar="NAME", default="CIM", help="as the server's list is to show it"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: beside the detections")
    add_result_arguments(parser)
    add_dataset_arguments(parser, default="coco2017test")
    args = parser.parse_args(argv)
    if args.json and not args.images:
        args.images = "."  # no image is looked at
    pack(args)
    return 0


def pack(args: argparse.Namespace) -> None:
    dataset = dataset_from_args(args)
    name = submission_name(dataset.json, args.algorithm)
    detections = detections_from_args(args, dataset.name)
    path = (args.output or detections.parent) / f"{name}.zip"
    content = read_coco(dataset.json, annotations=False)
    count, images = write_submission(read_json(detections), content, path, str(detections))
    print(
        f"{count} detections on {images} of {len(content['images'])} images\n"
        f"written: {path}\nupload it as it is at https://cocodataset.org/#upload (segm)"
    )


if __name__ == "__main__":
    sys.exit(main())
