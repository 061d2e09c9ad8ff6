"""Measures a part of the system and prints the numbers beside their goals.

Times are the best of several rounds; ratios are medians over rounds in which both sides were
measured in turn, and so hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from lib.benchmarks import BENCHMARKS, Conditions
from lib.benchmarks.report import cores, describe_machine, machine_text, table_text, write_numbers
from lib.benchmarks.timing import processor_time
from lib.command_line import errors_in_a_line
from lib.engine.distributed import make_current


@errors_in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    parser.add_argument("--check", action="store_true", help="exit code 1 where a goal is missed")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of torch (default: one per core)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and few repeats, to see that it runs"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time by what one thread computed instead of by the clock: for a machine that has "
        "other work, and for benchmarks of short functions on the CPU",
    )
    args = parser.parse_args(argv)
    if args.processor_time and (args.device != "cpu" or args.threads not in (None, 1)):
        raise ValueError("--processor-time goes with --device cpu and one thread")
    default = 1 if args.processor_time else cores()
    threads = default if args.threads is None else args.threads
    if threads < 1:
        raise ValueError(f"--threads is {threads}, expected at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with processor_time() if args.processor_time else nullcontext():
            return run(args)
    finally:
        torch.set_num_threads(before)


def run(args: argparse.Namespace) -> int:
    conditions = Conditions(torch.device(args.device), args.seed, args.quick)
    make_current(conditions.device)
    machine = describe_machine()
    machine["processor_time"] = args.processor_time
    clock = ", processor time" if args.processor_time else ""
    print(f"{args.name} on {machine_text(machine)}{clock}", flush=True)
    rows = list(BENCHMARKS[args.name](conditions))
    print(table_text(rows))
    if args.json:
        write_numbers(args.json, args.name, rows, machine, conditions)
    missed = [row.what for row in rows if row.met is False]
    if missed:
        print(f"goals missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
