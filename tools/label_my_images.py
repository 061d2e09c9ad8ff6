#!/usr/bin/env python3
"""From a folder of images and their labels to a mask for every object, and a page to look at.

Every step is one of the ordinary tools. What is up to date is not made again, and what was
interrupted resumes where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lib import command_line as cli
from lib.pipeline.label_my_images import label_images
from lib.pipeline.steps import Chain

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_tool(__doc__, cli.Command(label, options), argv)


def options(parser: cli.Parser) -> None:
    cli.add_dataset_arguments(parser)
    parser.set_defaults(data_root=None)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="takes everything that is made, unless --data-root is given (default: Outputs/<name>)",
    )
    cli.add_config_arguments(
        parser, help="default: configs/custom.yaml on a GPU, configs/photos.yaml on a CPU"
    )
    parser.add_argument(
        "--updates", type=int, metavar="N", help="of CIM (default: by the number of images)"
    )
    cli.add_selection_arguments(parser)
    parser.add_argument(
        "--preview",
        action="store_true",
        help="a few images and updates, in about three minutes on a CPU, into <output>/preview",
    )
    parser.add_argument("--plan", action="store_true", help="say how long it will take, and end")
    cli.add_train_overwrite(parser)
    cli.add_device_arguments(parser)


def label(args: cli.Namespace) -> None:
    if args.output is None:
        source = args.name or (args.images.resolve().name if args.images else args.dataset)
        args.output = Path("Outputs") / (source or "own")
    if args.images and args.output.resolve().is_relative_to(args.images.resolve()):
        raise ValueError(
            f"{args.output}: the output would lie in {args.images}, among the images; give another "
            "--output"
        )
    if args.data_root is None:
        args.data_root = args.output / "data"
    if args.cfg is None:
        small = torch.device(args.device).type == "cpu"
        args.cfg = CONFIGS / ("photos.yaml" if small else "custom.yaml")
    dataset = cli.dataset_from_args(args)
    chain = Chain(
        dataset.name,
        cfg=args.cfg,
        overrides=(*args.set, *cli.selection_words(args)),
        run=args.output,
        device=args.device,
        threads=args.threads,
        overwrite=args.overwrite,
    )
    label_images(dataset, chain, args.updates, args.plan, args.preview)


if __name__ == "__main__":
    sys.exit(main())
