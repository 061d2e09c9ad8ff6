"""Makes the proposals of some images and draws the first of each, one row an image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from lib.command_line import errors_in_a_line
from lib.config import load_config
from lib.data.images import read_image
from lib.proposals.generate import generate_proposals
from lib.visualization.panels import contact_sheet, save_png


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--output", required=True, metavar="FILE", help="a PNG file")
    parser.add_argument("--count", type=int, default=9, help="proposals to draw of each")
    parser.add_argument("--width", type=int, default=160, help="pixels of each tile")
    parser.add_argument("--cfg", metavar="FILE", help="its section `proposals` is used")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_args(argv)
    settings = load_config(args.cfg, args.set).proposals
    tiles = []
    for path in args.images:
        tiles += row(read_image(path), args.count, settings.options)
    save_png(args.output, contact_sheet(tiles, args.count + 1, args.width))
    return 0


def row(image: np.ndarray, count: int, options: dict) -> list[np.ndarray]:
    """The image and `count` copies of it, each dark but for one proposal."""
    masks = generate_proposals(image, count, **options).masks()
    dark = [np.where(mask[..., None], image, image // 5) for mask in masks]
    blank = np.full_like(image, 255)
    return [image, *dark, *[blank] * (count - len(dark))]


if __name__ == "__main__":
    sys.exit(main())
