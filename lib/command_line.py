"""The frame of every tool: sub-commands, common options, logging, error lines and exit codes.

A tool declares its commands and calls `run_tool`; argparse is used nowhere else.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
from argparse import SUPPRESS, Namespace
from argparse import ArgumentParser as Parser
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

import torch

from lib.config import PseudoLabelConfig
from lib.data.catalog import CATALOG, Dataset, named_dataset, own_dataset
from lib.engine.distributed import ALONE, Ranks, joined_ranks
from lib.engine.runs import detections_of_run, newest_run, start_logging
from lib.evaluation.pseudo_labels import MIN_PART
from lib.parallel import failures_text, workers

__all__ = ["SUPPRESS", "Command", "Namespace", "Parser", "run_tool"]

logger = logging.getLogger(__name__)

EXIT_CODES = (
    "Exit codes: 0 done; 1 a part failed or a loss is not finite; 2 bad input; 130 after Ctrl-C, "
    "143 after SIGTERM. Run the same command again to resume."
)


IN_CHAIN = "CIM_IN_CHAIN"
"""Set in the environment of the tools that a chain of steps runs."""


@dataclass(frozen=True)
class Command:
    """One thing that a tool does."""

    run: Callable[..., int | None]
    """Takes the parsed options, and the ranks if `distributed`; returns an exit code, None is 0."""
    options: Callable[[Parser], None]
    """Declares the options."""
    distributed: bool = False
    """Several processes started by tools/launch.py can share the work."""
    help: str | None = None
    """None takes the docstring of `run`."""


def run_tool(
    doc: str, commands: Command | Mapping[str, Command], argv: Sequence[str] | None
) -> int:
    """Parses the command line, runs the command, and turns errors into a line and an exit code.

    Args:
        doc: the tool's description for --help.
        commands: by name, or the only one, which then needs no name.
        argv: None takes the process's own.

    Returns:
        An exit code, see EXIT_CODES.
    """
    command, args = _parse(doc, commands, sys.argv[1:] if argv is None else argv)
    start_logging()
    try:
        with (
            joined_ranks(args.device) if command.distributed else nullcontext(ALONE) as ranks,
            workers(args.backend, args.scheduler) if "backend" in args else nullcontext(),
        ):
            start_logging(rank=ranks.rank)
            try:
                return (command.run(args, ranks) if command.distributed else command.run(args)) or 0
            except FloatingPointError as error:
                if ranks.is_first:  # every rank raises it
                    say_error(error)
                return 1
    except BrokenExecutor:
        say_error("a worker process died (out of memory?); run again with fewer --jobs")
    except (OSError, ValueError) as error:
        say_error(error)
    except KeyboardInterrupt:
        logger.error("interrupted; run the same command again to resume")
        return 128 + signal.SIGINT
    return 2


def say_error(error: object) -> None:
    """Writes one line to the terminal and, once a run has one, to its log."""
    logger.error("error: %s", error)


def say_next(command: str) -> None:
    """Names the tool to run next, unless a chain runs this one and goes on by itself."""
    if IN_CHAIN not in os.environ:
        logger.info("next: python %s", command)


def report_failures(failures: dict[str, str], total: int) -> int:
    """Names the images that failed, if any; returns the exit code."""
    if failures:
        print(failures_text(failures, total), file=sys.stderr)
    return 1 if failures else 0


def _parse(
    doc: str, commands: Command | Mapping[str, Command], argv: Sequence[str]
) -> tuple[Command, Namespace]:
    if isinstance(commands, Command):
        parser = Parser(description=doc, epilog=EXIT_CODES)
        commands.options(parser)
        return commands, parser.parse_args(argv)
    parser = Parser(description=doc, epilog="COMMAND --help shows the options of a command.")
    added = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for name, command in commands.items():
        told = command.help or inspect.getdoc(command.run) or ""
        first = told.split("\n")[0].replace("%", "%%")
        command.options(added.add_parser(name, help=first, description=told, epilog=EXIT_CODES))
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        near = get_close_matches(argv[0], commands, n=1, cutoff=0.0)[0]
        parser.error(
            f"no command is called {argv[0]}; did you mean {near}? There are {', '.join(commands)}"
        )
    args = parser.parse_args(argv)
    return commands[args.command], args


def add_config_arguments(
    parser: Parser, default: Path | None = None, help: str = "default: the published settings"
) -> None:
    """Adds --cfg and --set, the arguments of `lib.config.load_config`."""
    parser.add_argument(
        "--cfg", type=Path, metavar="FILE", default=default, help=f"configuration; {help}"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY VALUE", help="override single settings"
    )


def add_device_arguments(parser: Parser, threads: bool = True) -> None:
    """Adds --device and --threads."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="default: a GPU if there is one")
    if threads:
        parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")


def add_train_overwrite(parser: Parser) -> None:
    """Adds --overwrite of a training."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="train anew where the result there was made from other settings or data",
    )


def add_polygon_arguments(parser: Parser) -> None:
    """Adds --polygon-tolerance and --polygon-min-part, see `mask_to_polygons`."""
    parser.add_argument(
        "--polygon-tolerance",
        type=float,
        default=1.0,
        metavar="PX",
        help="how far a polygon may be off the mask's edge; 0 follows every pixel (default: 1)",
    )
    parser.add_argument(
        "--polygon-min-part",
        type=float,
        default=MIN_PART,
        metavar="FRACTION",
        help="drops parts and fills holes that are a smaller share of their mask (default: "
        "%(default)s)",
    )


def add_parallel_arguments(
    parser: Parser, jobs: int | None = -1, jobs_help: str = "one per core"
) -> None:
    """Adds --jobs, --backend and --scheduler; `run_tool` puts the workers in place."""
    group = parser.add_argument_group("parallel work")
    group.add_argument(
        "--jobs", "--workers", type=int, default=jobs, help=f"processes (default: {jobs_help})"
    )
    group.add_argument(
        "--backend",
        choices=("local", "dask"),
        default="local",
        help="processes of this machine, or the workers of a dask cluster (docs/cluster.md)",
    )
    group.add_argument("--scheduler", metavar="ADDRESS", help="of dask, such as tcp://host:8786")


def jobs_from_args(args: Namespace, images: int, few: int) -> int:
    """--jobs, where it has no default: one process for fewer than `few` images."""
    if args.jobs is not None:
        return args.jobs
    return 1 if images < few else -1


def add_dataset_arguments(
    parser: Parser, default: str | None = None, needs_images: bool = True
) -> None:
    """Adds the options that `dataset_from_args` reads.

    Args:
        default: a name of CATALOG to take where neither --dataset nor --json is given.
        needs_images: False for a command that opens no image: --json is enough.
    """
    group = parser.add_argument_group(
        "data set", "either --dataset, or --images and --json, or --images and --labels"
    )
    group.add_argument("--dataset", metavar="NAME", help=f"one of {', '.join(CATALOG)}")
    group.add_argument("--json", type=Path, metavar="FILE", help="any COCO json")
    group.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of the images" + ("" if needs_images else "; not needed with --json"),
    )
    group.add_argument(
        "--labels",
        type=Path,
        metavar="PATH",
        help="image-level labels: a .csv of rows `file,label`, a .txt of lines `name class-id "
        "...`, a folder with a sub-folder for each class, or a COCO .json without masks",
    )
    group.add_argument("--name", help="a name for it (default: that of the json, or of --images)")
    group.add_argument(
        "--data-root", type=Path, metavar="DIR", default=Path("data"), help="default: %(default)s"
    )
    for option, what, place in (
        ("--proposals", "DIR", "proposals/<name>"),
        ("--clusters", "DIR", "clusters/<name>"),
        ("--prm", "FILE", "prm/<name>.pth"),
    ):
        group.add_argument(option, type=Path, metavar=what, help=f"default: <data root>/{place}")
    parser.set_defaults(default_dataset=default, needs_images=needs_images)


def dataset_from_args(args: Namespace, ranks: Ranks = ALONE) -> Dataset:
    """The data set that a command line names.

    For --labels this makes its json in the data root (see `lib.data.custom.prepare`), in the first
    rank alone.

    Raises:
        ValueError: an unknown name, or options that do not go together.
        FileNotFoundError, ValueError: --images and --labels cannot be used.
    """
    dataset = _dataset(args) if ranks.is_first else None
    ranks.wait(patiently=True)  # reading every image may take longer than other ranks wait for
    return ranks.from_first(dataset)


def _dataset(args: Namespace) -> Dataset:
    given = [o for o in ("dataset", "json", "labels") if getattr(args, o) is not None]
    if len(given) > 1 or not given and (args.default_dataset is None or args.images is not None):
        raise ValueError(
            "name a data set: either --dataset NAME, or --images FOLDER with --json FILE or "
            "--labels PATH"
        )
    if args.json is None and args.labels is None:
        if args.images is not None or args.name is not None:
            raise ValueError("--images and --name go with --json or --labels, not with --dataset")
        dataset = named_dataset(args.dataset or args.default_dataset, args.data_root)
    else:
        if args.images is None and (args.needs_images or args.labels is not None):
            raise ValueError(f"--{given[0]} needs --images, the folder that the images lie in")
        dataset = own_dataset(args.images, args.json, args.labels, args.name, args.data_root)
    return replace(
        dataset,
        proposals_folder=args.proposals,
        clusters_folder=args.clusters,
        prm_file=args.prm,
    )


def add_result_arguments(parser: Parser, what: str = "COCO result file") -> None:
    """Adds the options that `run_from_args` and `detections_from_args` read."""
    group = parser.add_argument_group("results", "a file, or what the newest run has")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--detections", type=Path, metavar="FILE", help=f"any {what}")
    add_run_arguments(group, "a run folder", either)


def add_selection_arguments(parser: Parser) -> None:
    """Adds --select and --score-thresh, which `selection_words` reads."""
    parser.add_argument(
        "--select",
        choices=get_args(PseudoLabelConfig.model_fields["select"].annotation),
        help="masks to keep: all that reach a score, or those that the labels of their image vouch "
        "for (default: `pseudo_labels.select` of the configuration)",
    )
    parser.add_argument(
        "--score-thresh",
        type=float,
        metavar="X",
        help="keeps all masks scored X or more (default: as configured, 0.3 as published)",
    )


def selection_words(args: Namespace) -> list[str]:
    """Overrides of the configuration that --select and --score-thresh stand for.

    Raises:
        ValueError: they contradict each other.
    """
    if args.score_thresh is None:
        return [] if args.select is None else ["pseudo_labels.select", args.select]
    if args.select == "adaptive":
        raise ValueError(
            "--score-thresh is of --select score; `adaptive` has the setting "
            "pseudo_labels.relative_thresh"
        )
    score = ["pseudo_labels.select", "score"]
    return [*score, "pseudo_labels.score_thresh", f"{args.score_thresh}"]


def add_run_arguments(
    parser: Parser, help: str = "default: the newest run", either: Parser | None = None
) -> None:
    """Adds the options that `run_from_args` reads.

    Args:
        either: takes --run, beside options that exclude it.
    """
    (either or parser).add_argument("--run", type=Path, metavar="DIR", help=help)
    parser.add_argument(
        "--outputs", type=Path, default=Path("Outputs"), metavar="DIR", help="where runs lie"
    )


def run_from_args(args: Namespace) -> Path:
    """The run a command line names, or the newest.

    Raises:
        FileNotFoundError: there is no such folder, or no run at all.
    """
    if args.run is None:
        return newest_run(args.outputs)
    if not args.run.is_dir():
        raise FileNotFoundError(f"{args.run}: no such run folder")
    return args.run


def detections_from_args(args: Namespace, dataset_name: str, image_labels: bool = False) -> Path:
    """The detections a command line names: a file, or those of a run on a data set.

    Args:
        image_labels: the detections that keep to the image-level labels.

    Raises:
        FileNotFoundError: the run has none; the text says how to make them.
    """
    if args.detections is not None:
        return args.detections
    return detections_of_run(run_from_args(args), dataset_name, image_labels)
