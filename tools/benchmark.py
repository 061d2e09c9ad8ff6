"""Measure a part of the system and print the numbers beside their goals.

Times are the best of several rounds; ratios are medians over rounds in which both sides were
measured in turn, and so hardly depend on what else the machine does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from benchmarks import BENCHMARKS, Conditions
from benchmarks.gpu import run_checks
from benchmarks.gpu_checks import CHECKS
from benchmarks.report import cores, describe_machine, machine_text, table_text, write_numbers
from benchmarks.timing import processor_time

from lib import command_line as cli
from lib.engine.distributed import make_current
from lib.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    commands = {
        name: cli.Command(measure, measure_options, help=benchmark.help)
        for name, benchmark in BENCHMARKS.items()
    }
    return cli.run_tool(__doc__, {**commands, "gpu": cli.Command(gpu, gpu_options)}, argv)


def measure_options(parser: cli.Parser) -> None:
    parser.add_argument("--check", action="store_true", help="exit code 1 where a goal is missed")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers to this file"
    )
    cli.add_device_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and few repeats, to try whether it runs"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time by what one thread computed instead of by the clock: for a machine that has "
        "other work, and for benchmarks of short functions on the CPU",
    )


def measure(args: cli.Namespace) -> int:
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
            return print_numbers(args)
    finally:
        torch.set_num_threads(before)


def print_numbers(args: cli.Namespace) -> int:
    conditions = Conditions(torch.device(args.device), args.seed, args.quick)
    make_current(conditions.device)
    machine = describe_machine()
    machine["processor_time"] = args.processor_time
    clock = ", processor time" if args.processor_time else ""
    print(f"{args.command} on {machine_text(machine)}{clock}", flush=True)
    rows = list(BENCHMARKS[args.command].run(conditions))
    print(table_text(rows))
    if args.json:
        write_numbers(args.json, args.command, rows, machine, conditions)
    missed = [row.what for row in rows if row.met is False]
    if missed:
        print(f"goals missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed and args.check else 0


def gpu_options(parser: cli.Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=Path("Outputs/gpu_check.json"),
        help="default: %(default)s",
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, metavar="N", help="for all checks (default: 10)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, as always on the CPU")
    parser.add_argument("--within", action="store_true", help=cli.SUPPRESS)


def gpu(args: cli.Namespace) -> int:
    """Run what a first run on a GPU has to show: one line for each check, all numbers in a file.

    Every check is a process of its own with a time limit, and the next one runs after a failure
    too. On a machine without a GPU `--device cpu` tries the checks themselves, at small sizes.
    Exit code 1 means that a check missed its goal, failed or was left out.
    """
    if unknown := set(args.names) - set(CHECKS):
        raise ValueError(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"no GPU here: torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees "
            "none; --device cpu tries the checks without one"
        )
    make_current(device)
    conditions = Conditions(device, quick=args.quick or device.type == "cpu")
    names = [name for name in CHECKS if name in args.names or not args.names]
    if args.within:
        (name,) = names
        write_json(args.json, [asdict(row) for row in CHECKS[name].run(conditions)])
        return 0
    print(machine_text(describe_machine()), flush=True)
    good = 0
    for ok, text in run_checks(names, conditions, args.json, args.minutes):
        good += ok
        print(text, flush=True)
    print(f"{good} of {len(names)} ok; all numbers: {args.json}")
    return 0 if good == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
