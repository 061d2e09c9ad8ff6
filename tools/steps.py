#!/usr/bin/env python3
"""Runs the steps of a driver in scripts/, which says what the variables in the environment mean."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lib.command_line import errors_in_a_line
from lib.engine.runs import start_logging
from lib.pipeline.drivers import VARIABLES, driver_steps
from lib.pipeline.runner import run_steps


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("driver", choices=VARIABLES)
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="see the script")
    args = parser.parse_args(argv)
    start_logging()
    run_steps(driver_steps(args.driver, os.environ, args.words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
