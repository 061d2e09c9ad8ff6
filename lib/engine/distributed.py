"""Several processes that share the work, started by torchrun: one for each GPU, or some on CPUs.

Every process, a *rank*, runs the same program on its share of the images. Gradients are summed by
DistributedDataParallel (NCCL between GPUs, gloo on CPUs); everything else that ranks exchange is a
few numbers and names, by gloo.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=10)
"""A rank gives up after waiting this long for another one. A rank that has died is noticed at once;
this is for ranks that hang."""
PATIENCE = timedelta(days=7)
"""The same after hours of separate work, which some ranks finish long before others."""
LAUNCHER = "CIM_LAUNCHER"
"""Environment variable with the process id of tools/launch.py, for its ranks."""


class LostRankError(ConnectionError):
    """Another rank has failed or died; that rank, or torchrun, says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that share the work; by default it is the only one."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    """Of this process."""
    patient: dist.ProcessGroup | None = None
    """All ranks, with PATIENCE in place of TIMEOUT."""

    @property
    def is_first(self) -> bool:
        """Only rank 0 writes files and reports progress."""
        return self.rank == 0

    def share_of(self, items: Sequence[Any]) -> Sequence[Any]:
        """The items of this rank: every `count`-th, starting at its number."""
        return items[self.rank :: self.count]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order of rank. All ranks must call this."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The value of rank 0. All ranks must call this."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def wait(self, patiently: bool = False) -> None:
        """Waits until all ranks have called this.

        Args:
            patiently: allows PATIENCE instead of TIMEOUT.
        """
        if self.count > 1:
            group = self.patient if patiently else None
            dist.all_gather_object([None] * self.count, None, group)


ALONE = Ranks()


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Joins the ranks that torchrun has started; without torchrun, this process alone.

    Args:
        device: `cpu`, or `cuda`: each rank of a machine takes its own GPU.

    Raises:
        ValueError: the machine has fewer GPUs than ranks.
        LostRankError: another rank has ended while this one needed it.
    """
    where = torch.device(device)
    if not dist.is_torchelastic_launched():
        make_current(where)
        yield Ranks(device=device)
        return
    backend = "gloo"
    if where.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on this machine, which "
                f"has {there} GPUs; start one for each (gpus={there}, or --nproc-per-node {there})"
            )
        torch.cuda.set_device(local)
        device, backend = f"cuda:{local}", "cpu:gloo,cuda:nccl"
    _end_with_the_launcher()
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        patient = dist.new_group(timeout=PATIENCE, backend="gloo")
        yield Ranks(dist.get_rank(), dist.get_world_size(), device, patient)
    except RuntimeError as error:
        # After an error the group is not taken down: that would wait for the ranks that are gone.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostRankError(
            "another process of this training or test has failed or was killed; its own message, "
            "or torchrun's below, says why"
        ) from error
    dist.destroy_process_group()


def make_current(device: torch.device) -> None:
    """Makes a GPU the default of everything that names no device, such as pinning memory."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def _end_with_the_launcher() -> None:
    """Sends this process SIGTERM when torchrun has been killed.

    Otherwise its ranks would keep running beside those that the same command starts again, and
    ranks that have not met yet would wait until TIMEOUT.
    """
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        logger.error("error: torchrun has died, and this process ends as well")
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=watch, daemon=True).start()


def summing_model(model: nn.Module, ranks: Ranks) -> DistributedDataParallel:
    """Wraps the model: gradients are summed over all ranks, weights are those of rank 0.

    DistributedDataParallel alone would take the mean of the gradients.
    """
    device = torch.device(ranks.device)
    with warnings.catch_warnings():
        # Newer versions of torch call broadcast_buffers by another name, which older ones lack.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        parallel = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # running statistics do not change in training
            gradient_as_bucket_view=True,
            # Without it, it waits for gradients that never come. It costs a walk through the graph.
            find_unused_parameters=any(
                getattr(part, "has_idle_parameters", False) for part in model.modules()
            ),
        )
    # A lambda: torch inspects the annotations of a hook and does not expect strings there.
    parallel.register_comm_hook(None, lambda _, bucket: _sum(bucket))
    return parallel


def _sum(bucket: dist.GradBucket) -> Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
