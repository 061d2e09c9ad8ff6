"""Runs the tasks of `lib.parallel.for_each` on a dask cluster; needs the extra `dask`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import distributed
from distributed import Client, Future, WorkerPlugin
from distributed.scheduler import KilledWorker

CONNECT_SECONDS = 15.0
PATIENCE_SECONDS = 60.0  # without any worker
_PLUGIN = "cim-folder"
_LOST = "the connection to the scheduler is lost; run again when it is up"


class ClusterError(ConnectionError):
    """The cluster cannot finish the work; finished results are kept."""


@contextmanager
def dask_client(address: str) -> Iterator[Client]:
    """Connects to the scheduler at an address such as tcp://host:8786.

    Raises:
        ClusterError: no scheduler answers, it has no worker, or a worker cannot import this
            project or does not see the current folder.
    """
    for name in ("distributed.client", "distributed.utils"):
        # A lost connection ends in an error of one line, not in tracebacks.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{address}: no dask scheduler answers ({_first_line(error)}); `dask scheduler` starts "
            "one and prints its address"
        ) from None
    with client:
        _prepare(client, address)
        try:
            yield client
        finally:
            if client.status == "running":
                client.unregister_worker_plugin(_PLUGIN)


def run_tasks(
    client: Client,
    function: Callable[..., tuple[str, Any, str | None]],
    tasks: Iterable[tuple[Any, ...]],
) -> Iterator[tuple[str, Any, str | None]]:
    """Yields the results of `function(*task)` as they finish.

    dask gives the tasks of a dead worker to others; one that kills too many of them
    (`distributed.scheduler.allowed-failures`) yields (its name, None, the reason).

    Args:
        function: returns (name, result, reason of failure).
        tasks: its arguments, the second of which is the name; two a thread are in flight.

    Raises:
        ClusterError: the cluster had no worker for a while, or the scheduler is gone.
    """
    tasks = iter(tasks)
    pending: dict[Future, str] = {}
    last_seen = time.monotonic()
    try:
        while True:
            try:
                threads = sum(client.ncores().values())
            except OSError:
                raise ClusterError(_LOST) from None
            for task in islice(tasks, max(2 * threads - len(pending), 0)):
                pending[client.submit(function, *task, pure=False)] = task[1]
            if threads:
                last_seen = time.monotonic()
                if not pending:
                    return
            elif time.monotonic() - last_seen > PATIENCE_SECONDS:
                raise ClusterError(
                    f"no worker in the cluster for {PATIENCE_SECONDS:g} s; run again with workers"
                )
            for future in _finished(pending):
                yield _outcome(future, pending.pop(future))
    finally:
        for future in pending:
            future.release()  # what no worker has begun is forgotten


def _finished(pending: dict[Future, str]) -> list[Future]:
    """Waits for at least one future, at most for a second."""
    with suppress(TimeoutError, CancelledError):
        distributed.wait(list(pending), timeout=1, return_when="FIRST_COMPLETED")
    return [future for future in pending if future.done()]


def _outcome(future: Future, name: str) -> tuple[str, Any, str | None]:
    if future.cancelled():
        raise ClusterError(_LOST)
    error = future.exception()
    if isinstance(error, KilledWorker):
        return name, None, "the workers that had it died (out of memory?); run again"
    return future.result() if error is None else (name, None, _first_line(error))


def _prepare(client: Client, address: str) -> None:
    remedy = f"the scheduler has no workers; start some with `dask worker {address}`"
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        remedy = (
            "its scheduler or a worker cannot import this project; start them in the same "
            "environment (`pip install -e .`)"
        )
        client.run_on_scheduler(_find_package)
        client.run(_find_package)
        remedy = "a worker does not see this folder; files must lie under the same path everywhere"
        client.register_plugin(_WorkIn(os.getcwd()), _PLUGIN)
    except Exception as error:
        raise ClusterError(f"{address}: {remedy} ({_first_line(error)})") from None


def _find_package() -> str:
    return __file__


class _WorkIn(WorkerPlugin):
    """Makes workers, also those that come later, work in the given folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def setup(self, worker: distributed.Worker) -> None:
        self.before = os.getcwd()
        os.chdir(self.folder)

    def teardown(self, worker: distributed.Worker) -> None:
        os.chdir(self.before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
