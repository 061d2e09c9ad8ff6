"""The work of `lib.parallel.for_each` on a ray cluster; needs the extra `ray`.

The backend for joblib that ray brings is a pool of actors: it cannot hand out results as they
come, deals the images to the actors in turn, so that all wait for the slowest, and drops the work
when one dies. The one here makes ray's tasks, which go to whichever worker is free and are tried
again where it dies. What is added to them is that it ends: ray by itself waits for a cluster
without workers, and ends the process where the head of the cluster is gone.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import joblib
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from lib import cluster
from lib.cluster import ClusterError, failed_images, first_line

RETRIES = 3
"""So often a task is tried again whose worker died (what dask's schedulers do)."""
HEAD_SECONDS = 30.0
"""So long the head of the cluster may not answer; after 60 ray ends the process."""
START_SECONDS = 120.0
"""So long a node may take to start a worker."""
LEAVE_SECONDS = 10.0
"""So long the threads that speak to ray may take to end, and ray itself to say good-bye."""

# They are read when ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # no paragraph for every dead worker
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # else it tries to join for 14 minutes
os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # without it, there is no end of them

import ray  # noqa: E402
from ray.exceptions import (  # noqa: E402
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

logger = logging.getLogger(__name__)


@contextmanager
def ray_workers(address: str | None) -> Iterator[None]:
    """Makes the workers of a ray cluster those of joblib.

    This machine must be a node of it. The tasks run in this process's current folder, which the
    other nodes must see under the same path.

    Args:
        address: host:port as `ray start --head` prints it. None is RAY_ADDRESS, else the cluster
            that this machine belongs to, else one that is started here and ends with the block.

    Raises:
        ClusterError: there is no such cluster, it has no worker, or they are set up differently.
    """
    _join(address or os.environ.get("RAY_ADDRESS"))
    try:
        _check_nodes()
        joblib.register_parallel_backend("cim-ray", _Backend)
        with joblib.parallel_config("cim-ray"):
            yield
    finally:
        _leave()


def _join(address: str | None) -> None:
    if address not in (None, "auto", "local"):
        _look_for_head(address)
    try:
        try:
            _init(address or "auto")
        except ConnectionError:
            if address not in (None, "auto"):
                raise
            logger.warning("no ray cluster runs on this machine: one is started for this run")
            _init("local")
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(
            f"cannot join the ray cluster {address or 'of this machine'} ({first_line(error)}); "
            "make this machine one of its nodes with `ray start`, with the same ray and Python"
        ) from None


def _leave() -> None:
    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    leaving.start()
    leaving.join(LEAVE_SECONDS)
    if leaving.is_alive():  # it waits forever for a head whose machine is gone
        atexit.register(_exit_with_an_error)


def _exit_with_an_error() -> None:
    """Without the end of the interpreter, which waits, too, or crashes in the threads of ray."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _init(address: str) -> None:
    own = {"include_dashboard": False} if address == "local" else {}
    ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **own)


def _look_for_head(address: str) -> None:
    """ray would take a minute, and many lines, to say that nobody answers."""
    found = re.fullmatch(r"([^:/]+):(\d+)", address)
    if not found:
        raise ClusterError(
            f"{address}: expected the host:port that `ray start --head` prints, such as host:6379 "
            "(ray:// is not supported; start the tool on a node of the cluster)"
        )
    try:
        socket.create_connection((found[1], int(found[2])), cluster.CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"{address}: no ray cluster answers ({first_line(error)}); start one with "
            "`ray start --head` and give the address that it prints"
        ) from None


def _working_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def _check_nodes() -> None:
    """Whether every node can unpickle functions of this package, and sees the current folder."""
    nodes = _working_nodes()
    if not nodes:
        raise ClusterError(
            "the ray cluster has no CPUs to work on; start nodes with `ray start --address=...`"
        )
    enter = ray.remote(num_cpus=0, max_retries=0)(_enter)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[enter.options(scheduling_strategy=there).remote(os.getcwd())] = node
    _, late = ray.wait(list(asked), num_returns=len(asked), timeout=START_SECONDS)
    for answer, node in asked.items():
        name = node["NodeManagerHostname"]
        if answer in late:
            raise ClusterError(f"{name}: no worker starts there within {START_SECONDS:g} s")
        try:
            ray.get(answer)
        except OSError as error:  # ray's errors of a task are also of the type that it raised
            raise ClusterError(
                f"{name}: a worker does not see this folder ({_cause(error)}); the files must lie "
                "under the same path everywhere"
            ) from None
        except RayError as error:
            raise ClusterError(
                f"{name}: a worker cannot import this project ({_cause(error)}); start the nodes "
                "in the same environment (`pip install -e .`)"
            ) from None


def _enter(folder: str) -> None:
    os.chdir(folder)


def _work(folder: str, batch: Callable[[], list[Any]]) -> list[Any]:
    os.chdir(folder)
    return batch()


def _cause(error: Exception) -> str:
    return first_line(error.cause if isinstance(error, RayTaskError) else error)


class _Backend(AutoBatchingMixin, ParallelBackendBase):
    """Tasks of ray for joblib, for calls of `lib.parallel._attempt`.

    A task that fails outside of its function, which takes the death of 1 + RETRIES workers, counts
    as the failure of its images.
    """

    supports_retrieve_callback = True

    def effective_n_jobs(self, n_jobs: int) -> int:
        cpus = sum(int(node["Resources"]["CPU"]) for node in _working_nodes())
        return max(2, cpus)  # for 1 joblib works in this process

    def start_call(self) -> None:
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
        self._folder = os.getcwd()
        self._pending: dict[ray.ObjectRef, tuple[Any, Callable[[Any], None]]] = {}
        self._ended = threading.Event()
        self._head_seen = self._workers_seen = time.monotonic()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._collect, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def stop_call(self) -> None:
        """ray ends a process that speaks to it after good-bye, so nobody may be left who does."""
        self._ended.set()
        while self._threads:
            thread = self._threads.pop()
            if thread is not threading.current_thread():
                thread.join(LEAVE_SECONDS)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self._pending.clear()  # which cancels nothing; the workers end when this process leaves
        self.stop_call()

    def submit(self, func: Any, callback: Callable[[Any], None]) -> ray.ObjectRef:
        if self._ended.is_set():
            raise ClusterError("the work has ended")
        answer = self._task.remote(self._folder, func)
        self._pending[answer] = (func, callback)
        return answer

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, ClusterError):
            raise out
        return out

    def _collect(self) -> None:
        """Hands results to joblib, which submits more in this thread; gives up in time."""
        try:
            while not self._ended.is_set():
                self._collect_ready()
                if time.monotonic() - self._head_seen > HEAD_SECONDS:
                    raise ClusterError(
                        f"the head of the ray cluster has not answered for {HEAD_SECONDS:g} s; "
                        "run again when it is up"
                    )
                if self._head_seen - self._workers_seen > cluster.PATIENCE_SECONDS:
                    raise cluster.no_worker()
        except Exception as error:
            if not isinstance(error, ClusterError):
                error = ClusterError(f"the ray cluster fails ({first_line(error)}); run again")
            while self._pending:
                _, (_, callback) = self._pending.popitem()
                callback(error)

    def _collect_ready(self) -> None:
        pending = list(self._pending)
        if not pending:
            self._ended.wait(0.01)
            return
        ray.wait(pending, timeout=0.1)
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        for answer in ready:
            if answer not in self._pending:
                return  # aborted
            batch, callback = self._pending[answer]
            result = _result(answer, batch)
            del self._pending[answer]  # not earlier: an error must find one to call back
            callback(result)

    def _watch(self) -> None:
        """In a thread of its own, for ray waits where the head does not answer."""
        while not self._ended.wait(min(1.0, cluster.PATIENCE_SECONDS / 4)):
            workers = _working_nodes()
            self._head_seen = time.monotonic()
            if workers:
                self._workers_seen = self._head_seen


def _result(answer: ray.ObjectRef, batch: Any) -> list[Any]:
    try:
        return ray.get(answer)
    except (WorkerCrashedError, OutOfMemoryError, NodeDiedError):
        return failed_images(batch, cluster.WORKERS_DIED)
    except RayTaskError as error:
        return failed_images(batch, f"{type(error.cause).__name__}: {_cause(error)}")
