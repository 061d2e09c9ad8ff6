"""Results in the form that other tools and servers take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.data.coco import read_coco
from lib.evaluation.submission import submission_name, write_submission
from lib.files import read_json


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_tool(__doc__, {"submission": cli.Command(submission, submission_options)}, argv)


def submission_options(parser: cli.Parser) -> None:
    parser.add_argument(
        "--algorithm", metavar="NAME", default="CIM", help="as the server's list is to show it"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: beside the detections")
    cli.add_result_arguments(parser)
    cli.add_dataset_arguments(parser, default="coco2017test", needs_images=False)


def submission(args: cli.Namespace) -> None:
    """Pack detections on COCO test-dev for its evaluation server.

    The annotations of test-dev are not public; the server compares the detections with them.
    """
    dataset = cli.dataset_from_args(args)
    name = submission_name(dataset.json, args.algorithm)
    detections = cli.detections_from_args(args, dataset.name)
    path = (args.output or detections.parent) / f"{name}.zip"
    content = read_coco(dataset.json, annotations=False)
    count, images = write_submission(read_json(detections), content, path, str(detections))
    print(
        f"{count} detections on {images} of {len(content['images'])} images\n"
        f"written: {path}\nupload it as it is at https://cocodataset.org/#upload (segm)"
    )


if __name__ == "__main__":
    sys.exit(main())
