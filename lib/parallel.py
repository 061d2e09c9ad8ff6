"""Parallel work on images, on all cores or a cluster; one failing image does not stop the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import cv2
from joblib import Parallel, delayed
from tqdm import tqdm

from lib.optional import require_package

_client: ContextVar[Any] = ContextVar("client", default=None)
"""The dask client of `workers`; None works on this machine."""


def for_each(
    function: Callable[..., Any],
    tasks: Iterable[tuple[str, tuple[Any, ...]]],
    total: int,
    jobs: int = -1,
    title: str = "",
) -> tuple[dict[str, Any], dict[str, str]]:
    """Calls `function(*arguments)` for every task, showing progress.

    Workers are processes of this machine or, inside `workers`, of a cluster. Tasks are taken from
    the iterable as they become free, so it may make large ones.

    Args:
        function: something that other processes can import.
        tasks: (name, arguments); the names are distinct.
        total: how many tasks there are.
        jobs: workers; -1 is one per core, 1 is this process.

    Returns:
        (result by name, reason by name of those that failed), both in the order of the tasks.

    Raises:
        BrokenExecutor: a process of this machine died.
        ConnectionError: the cluster is gone. (An image that kills its worker there is a failure.)
    """
    names: list[str] = []

    def calls() -> Iterator[tuple[Any, ...]]:
        for name, arguments in tasks:
            names.append(name)
            yield function, name, arguments

    if _client.get() is None:
        run = Parallel(n_jobs=jobs, return_as="generator")
        outcomes = run(delayed(_attempt)(*call) for call in calls())
    else:
        from lib.dask_cluster import run_tasks

        outcomes = run_tasks(_client.get(), _attempt, calls())
    outcomes = tqdm(outcomes, total=total, desc=title, unit="image")
    done = {name: (result, reason) for name, result, reason in outcomes}
    results = {name: done[name][0] for name in names if done[name][1] is None}
    return results, {name: done[name][1] for name in names if name not in results}


@contextmanager
def workers(backend: str = "local", scheduler: str | None = None) -> Iterator[None]:
    """Inside this block `for_each` works on this machine (`local`) or on a cluster (`dask`).

    Args:
        scheduler: address of the cluster.

    Raises:
        ValueError: options that do not go together, or dask is not installed.
        ConnectionError: the cluster cannot be used.
    """
    if (backend == "dask") != (scheduler is not None):
        raise ValueError(
            "--backend dask and --scheduler ADDRESS go together; `dask scheduler` prints the "
            "address"
        )
    if backend == "local":
        yield
        return
    require_package("distributed", "dask", "--backend dask")
    from lib.dask_cluster import dask_client

    with dask_client(scheduler) as client:
        token = _client.set(client)
        try:
            yield
        finally:
            _client.reset(token)


def end_thread_pools() -> None:
    """Puts OpenCV on one thread; call it before forking.

    Its pool of threads does not survive a fork: a forked process that comes near it never ends.
    """
    cv2.setNumThreads(1)


def free_memory() -> float:
    """Bytes free here, on the machine or in its container; 0 where the system does not tell."""
    free = _number_in("/proc/meminfo", r"MemAvailable:\s+(\d+) kB") * 1024
    group = "/sys/fs/cgroup/memory."
    limit = _number_in(f"{group}max", r"(\d+)")
    if limit:
        cache = _number_in(f"{group}stat", r"\binactive_file (\d+)")
        free = min(free, limit - _number_in(f"{group}current", r"(\d+)") + cache)
    return max(0.0, free)


def _number_in(file: str, pattern: str) -> float:
    """The number that a pattern finds in a file of the system; 0 without it."""
    try:
        found = re.search(pattern, Path(file).read_text())
    except OSError:
        return 0.0
    return float(found[1]) if found else 0.0


def failures_text(failures: dict[str, str], total: int, limit: int = 100) -> str:
    """The failures of `for_each` as the last lines of a report; at most `limit` are named."""
    return "\n".join([f"{len(failures)} of {total} images failed:", *named(failures, limit)])


def named(reasons: Mapping[str, str], limit: int) -> list[str]:
    """A line for each of the first `limit` names and reasons, and one that counts the others."""
    lines = [f"  {name}: {reason}" for name, reason in list(reasons.items())[:limit]]
    return lines + [f"  ... and {len(reasons) - limit} more"] * (len(reasons) > limit)


def _attempt(
    function: Callable[..., Any], name: str, arguments: tuple[Any, ...]
) -> tuple[str, Any, str | None]:
    try:
        return name, function(*arguments), None
    except (ValueError, OSError) as error:
        return name, None, str(error)
    except Exception as error:  # whatever it is, the other images are worth finishing
        return name, None, f"{type(error).__name__}: {error}"
