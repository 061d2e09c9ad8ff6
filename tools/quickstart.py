#!/usr/bin/env python3
"""The whole method on the embedded data set: data, proposals, peaks, training, masks, a gallery.

Every step is one of the ordinary tools, called as a user would call it. What is up to date is not
made again, and what was interrupted continues where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.command_line import errors_in_a_line
from lib.engine.runs import start_logging
from lib.pipeline.quickstart import quickstart

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "resnet18_shapes.yaml"


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("Outputs/quickstart"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--cfg", type=Path, default=CONFIG)
    parser.add_argument(
        "--images", nargs=2, type=int, default=(400, 200), metavar=("TRAIN", "TEST")
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_args(argv)
    start_logging()
    print(quickstart(args.output, args.data_root, args.cfg, args.images, args.set))
    return 0


if __name__ == "__main__":
    sys.exit(main())
