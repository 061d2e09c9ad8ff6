"""Makes the embedded data set: small images of shapes, with annotations as COCO json."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from lib.command_line import errors_in_a_line
from lib.data.shapes import NUM_IMAGES, make_shapes


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root", default="data", metavar="DIR", help="writes DIR/shapes")
    parser.add_argument("--seed", type=int, default=0)
    for split, count in NUM_IMAGES.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help="images")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = make_shapes(args.root, args.seed, {s: getattr(args, s) for s in NUM_IMAGES})
    print(f"{args.root}/shapes: {'made' if made else 'complete already, nothing to do'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
