#!/usr/bin/env python3
"""The whole method on the embedded data set: data, proposals, peaks, training, masks, a gallery.

Every step is one of the ordinary tools. What is up to date is not made again, and what was
interrupted resumes where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import command_line as cli
from lib.pipeline.quickstart import quickstart

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "resnet18_shapes.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_tool(__doc__, cli.Command(run, options), argv)


def options(parser: cli.Parser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("Outputs/quickstart"),
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="default: %(default)s"
    )
    cli.add_config_arguments(parser, CONFIG, "default: configs/resnet18_shapes.yaml")
    parser.add_argument(
        "--images",
        nargs=2,
        type=int,
        default=(400, 200),
        metavar=("TRAIN", "TEST"),
        help="how many (default: 400 200)",
    )
    cli.add_train_overwrite(parser)


def run(args: cli.Namespace) -> None:
    text = quickstart(args.output, args.data_root, args.cfg, args.images, args.set, args.overwrite)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
