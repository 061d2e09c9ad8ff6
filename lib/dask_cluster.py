"""The work of `lib.parallel.for_each` on a dask cluster; needs the extra `dask`.

joblib's own backend does the work. What is added here is that it ends: by itself it waits forever
for a task that no worker can finish, and for a cluster that is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import distributed
import joblib
from distributed import Client, WorkerPlugin
from distributed.scheduler import KilledWorker
from joblib._dask import DaskDistributedBackend

from lib import cluster
from lib.cluster import ClusterError, failed_images, first_line

_PLUGIN = "cim-folder"


@contextmanager
def dask_workers(address: str) -> Iterator[None]:
    """Makes the workers of a scheduler those of joblib.

    The tasks run in this process's current folder, which the workers must see under the same path.

    Args:
        address: as `dask scheduler` prints it, such as tcp://host:8786.

    Raises:
        ClusterError: there is no scheduler, it has no worker, or either is set up differently.
    """
    try:
        client = Client(address, timeout=cluster.CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{address}: no dask scheduler answers ({first_line(error)}); start one with "
            "`dask scheduler` and give the address that it prints"
        ) from None
    for name in ("distributed.client", "distributed.utils"):
        # A lost connection ends in an error of one line, not in tracebacks.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with client:
        _prepare(client, address)
        try:
            joblib.register_parallel_backend("cim-dask", _Backend)
            with joblib.parallel_config("cim-dask", client=client):
                yield
        finally:
            if client.status == "running":
                client.unregister_worker_plugin(_PLUGIN)


def _prepare(client: Client, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=cluster.CONNECT_SECONDS)
    except TimeoutError:
        raise ClusterError(
            f"{address}: the scheduler has no workers; start some with `dask worker {address}`"
        ) from None
    try:
        # They get functions of this package to unpickle: better to know now than image by image.
        client.run_on_scheduler(_find_package)
        client.run(_find_package)
    except Exception as error:
        raise ClusterError(
            f"{address}: its scheduler or a worker cannot import this project "
            f"({first_line(error)}); start them in the same environment (`pip install -e .`)"
        ) from None
    try:
        client.register_plugin(_WorkIn(os.getcwd()), _PLUGIN)
    except OSError as error:
        raise ClusterError(
            f"{address}: a worker does not see this folder ({first_line(error)}); the files must "
            "lie under the same path everywhere"
        ) from None


def _find_package() -> str:
    return __file__


class _WorkIn(WorkerPlugin):
    """Workers, also those that come later, work in the given folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def setup(self, worker: distributed.Worker) -> None:
        self.before = os.getcwd()
        os.chdir(self.folder)

    def teardown(self, worker: distributed.Worker) -> None:
        os.chdir(self.before)


class _Backend(DaskDistributedBackend):
    """joblib's, for calls of `lib.parallel._attempt`.

    A task that fails outside of its function, which takes the death of its worker as often as the
    scheduler allows, counts as the failure of its images.
    """

    def start_call(self) -> None:
        super().start_call()
        self.client.loop.add_callback(self._watch)

    def effective_n_jobs(self, n_jobs: int) -> int:
        return max(2, super().effective_n_jobs(n_jobs))  # for 1 joblib works in this process

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Future:
        def tell(done: Future) -> None:
            error = done.exception()  # joblib's backend calls back only where there is none
            if isinstance(error, ClusterError):
                callback(error)
            elif error is not None:
                callback(failed_images(func, _reason(error)))

        future = super().submit(func, callback)
        future.add_done_callback(tell)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, ClusterError):
            raise out
        if isinstance(out, BaseException):  # of a future that was cancelled
            raise ClusterError("the connection to the scheduler is lost; run again when it is up")
        return super().retrieve_result_callback(out)

    async def _watch(self) -> None:
        """Fails what is pending when there has been no worker for a while."""
        seen = time.monotonic()
        while self._continue:
            await asyncio.sleep(min(1.0, cluster.PATIENCE_SECONDS / 4))
            try:
                if await self.client.scheduler.ncores():
                    seen = time.monotonic()
            except OSError:
                pass  # nor is there a scheduler
            if time.monotonic() - seen > cluster.PATIENCE_SECONDS:
                for future in list(self._results.values()):
                    if not future.done():
                        future.set_exception(cluster.no_worker())
                return


def _reason(error: BaseException) -> str:
    if isinstance(error, KilledWorker):
        return cluster.WORKERS_DIED
    return f"{type(error).__name__}: {first_line(error)}"
