"""Several processes that share the images of every update.

Started by `torchrun`, each process is a rank: it takes its share of an update's images, and the
gradients are summed over all ranks, so that the weights are those of one process (SPEC 6).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; the default is a process on its own."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def check_divides(self, images_per_update: int) -> None:
        """
        Raises:
            ValueError: the images of an update cannot be shared out evenly.
        """
        if images_per_update % self.count:
            raise ValueError(
                f"solver.images_per_update is {images_per_update}, which {self.count} processes "
                "cannot share evenly; start another number of them"
            )

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces the tensors, which have one dtype, by their sums over all ranks."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def max(self, value: int) -> int:
        """The largest `value` that any rank has."""
        if self.count == 1:
            return value
        return max(self.gather(value))

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        values: list[T] = [value] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """The first rank's `value`."""
        return self.gather(value)[0]


def join_ranks(device: str) -> Ranks:
    """Joins the processes that torchrun started with this one, if it did."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Ranks(dist.get_rank(), count)
