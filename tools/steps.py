#!/usr/bin/env python3
"""Run the steps of a driver in scripts/, which says what the variables in the environment mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lib import command_line as cli
from lib.pipeline.drivers import VARIABLES, driver_steps
from lib.pipeline.runner import run_steps


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_tool(__doc__, cli.Command(run, options), argv)


def options(parser: cli.Parser) -> None:
    parser.add_argument("driver", choices=VARIABLES)
    parser.add_argument("words", nargs="...", help="see the script")


def run(args: cli.Namespace) -> None:
    run_steps(driver_steps(args.driver, os.environ, args.words))


if __name__ == "__main__":
    sys.exit(main())
