"""The same work for every image, on all cores, where one failing image does not stop the others."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import cv2
from joblib import Parallel, delayed
from tqdm import tqdm

_CLUSTERS = {"dask": "distributed", "ray": "ray"}
"""The package that each kind of cluster needs; lib/NAME_cluster.py has its `NAME_workers`."""


def for_each(
    function: Callable[..., Any],
    tasks: Iterable[tuple[str, tuple[Any, ...]]],
    total: int,
    jobs: int = -1,
    title: str = "",
) -> tuple[dict[str, Any], dict[str, str]]:
    """Calls `function(*arguments)` for every task, showing progress.

    The tasks are taken from the iterable as workers become free, so it may make large ones. The
    workers are processes of this machine or, inside `workers_from_args`, those of a cluster.

    Args:
        function: something that other processes can import.
        tasks: (name, arguments); the names are distinct.
        total: how many tasks there are.
        jobs: workers; -1 is one per core, 1 is this process.

    Returns:
        (result by name, reason by name of those that failed), both in the order of the tasks.

    Raises:
        BrokenExecutor: a process of this machine died.
        ConnectionError: the cluster is gone. (Where an image kills its worker there, that is the
            image's failure.)
    """
    calls = (delayed(_attempt)(function, name, arguments) for name, arguments in tasks)
    outcomes = Parallel(n_jobs=jobs, return_as="generator")(calls)
    results, failures = {}, {}
    for name, result, reason in tqdm(outcomes, total=total, desc=title, unit="image"):
        if reason is None:
            results[name] = result
        else:
            failures[name] = reason
    return results, failures


def add_parallel_arguments(
    parser: argparse.ArgumentParser, jobs: int | None = -1, jobs_help: str = "one per core"
) -> None:
    """Adds --jobs (default `jobs`), and the options that `workers_from_args` reads."""
    group = parser.add_argument_group("parallel work")
    group.add_argument(
        "--jobs", "--workers", type=int, default=jobs, help=f"processes (default: {jobs_help})"
    )
    group.add_argument(
        "--backend",
        choices=("local", *_CLUSTERS),
        default="local",
        help="processes of this machine, or the workers of a cluster (docs/cluster.md)",
    )
    group.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of the cluster: for dask such as tcp://host:8786; for ray such as host:6379 "
        "(default: RAY_ADDRESS, else the cluster of this machine, else one is started)",
    )


def workers_from_args(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Where `for_each` works inside this block, as a command line says.

    Raises:
        ValueError: options that do not go together, or what the backend needs is not installed.
        ConnectionError: the cluster cannot be used.
    """
    if args.backend == "local":
        if args.scheduler is not None:
            raise ValueError(f"--scheduler goes with --backend {' or '.join(_CLUSTERS)}")
        return nullcontext()
    if args.backend == "dask" and args.scheduler is None:
        raise ValueError(
            "--backend dask needs --scheduler, the address that `dask scheduler` prints"
        )
    package = _CLUSTERS[args.backend]
    try:
        module = import_module(f"lib.{args.backend}_cluster")
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(
            f"--backend {args.backend} needs the package {package}, which is not installed; "
            f"pip install -e '.[{args.backend}]' in the project's folder"
        ) from None
    return getattr(module, f"{args.backend}_workers")(args.scheduler)


def end_thread_pools() -> None:
    """To be called before processes are forked: OpenCV works on one thread from here on.

    Its pool of threads does not survive a fork, and a forked process that comes near it waits for
    ever.
    """
    cv2.setNumThreads(1)


def failures_text(failures: dict[str, str], total: int, limit: int = 100) -> str:
    """The failures of `for_each` as lines to end a report with; at most `limit` are named."""
    lines = [f"{len(failures)} of {total} images failed:"]
    lines += [f"  {name}: {reason}" for name, reason in list(failures.items())[:limit]]
    if len(failures) > limit:
        lines.append(f"  ... and {len(failures) - limit} more")
    return "\n".join(lines)


def _attempt(
    function: Callable[..., Any], name: str, arguments: tuple[Any, ...]
) -> tuple[str, Any, str | None]:
    try:
        return name, function(*arguments), None
    except (ValueError, OSError) as error:
        return name, None, str(error)
    except Exception as error:  # whatever it is, the other images are worth finishing
        return name, None, f"{type(error).__name__}: {error}"
