"""Computes a training's failed update again and says where the first NaN or infinity came up.

The file is failed_update.pt of a run that ended so: the weights before the update and its images.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lib.analysis.replay import Replayed, load_failed_update, not_finite, replay_update
from lib.command_line import errors_in_a_line
from lib.config import config_from


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="failed_update.pt of a run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY VALUE", help="changes of its configuration"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(args)
    return 0


def run(args: argparse.Namespace) -> None:
    failed = load_failed_update(args.file)
    config = config_from(failed["config"], str(args.file), args.set)
    images = replay_update(failed, config, args.file, args.device)
    print(f"{args.file}: {failed['told']}\n")
    bad = not_finite(failed["model"])
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        print(f"The weights were not finite before: {', '.join(bad[:5])}{more}\n")

    for image, before in zip(images, failed["losses"], strict=True):
        show(image, before)


def show(image: Replayed, before: dict[str, float]) -> None:
    print(f"{image.file_name:<14} now          in training")
    for name, values in image.losses.items():
        stages = f"  by stage {' '.join(f'{v:g}' for v in values)}" if len(values) > 1 else ""
        print(f"  {name:<12} {sum(values):<12g} {before[name]:<12g}{stages}")
    print(f"  first not finite: {image.first_output or 'nothing up to the losses'}")
    print(f"  on the way back:  {image.first_gradient or 'nothing'}; norm {image.grad_norm:g}")


if __name__ == "__main__":
    sys.exit(main())
