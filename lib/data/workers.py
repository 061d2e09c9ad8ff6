"""Worker processes that load samples ahead of training."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.parallel import end_thread_pools


def load_ahead(
    load: Callable[[Any], Any],
    requests: Iterable[Any],
    num_workers: int = 0,
    pin_memory: bool = False,
    seed: int = 0,
) -> Iterator[Any]:
    """Yields `load(request)` for every request, in order.

    Results travel through pipes, not through shared memory: containers often have 64 MB of that
    (docker's default), and a sample that does not fit there would be lost without a word.

    Args:
        load: returns a tensor, or an object of tensors; raises OSError or ValueError for bad
            input, which is raised here when that result is due.
        requests: may be endless.
        num_workers: processes that load ahead; 0 loads in this one.
        pin_memory: results are in pinned memory, from which copies to a GPU do not wait.
        seed: of the workers' global random generators.

    Raises:
        WorkerError: a worker died; noticed within seconds.
    """
    if num_workers:
        end_thread_pools()  # the workers are forked with the first result
    loader = DataLoader(
        _Requests(load, packs=num_workers > 0),
        batch_size=None,
        sampler=requests,
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
        generator=torch.Generator().manual_seed(seed),
    )
    results = iter(loader)
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except (RuntimeError, EOFError, ConnectionError) as error:
            raise WorkerError(
                f"a worker that loads images died (out of memory?): {error or 'its pipe closed'}; "
                "run again, with a smaller input.num_workers"
            ) from error
        if isinstance(result, _Packed):
            result = result.unpack()
        if isinstance(result, Exception):
            raise result
        yield result


class WorkerError(OSError):
    """A worker process died."""


class _Requests(Dataset):
    """Answers the requests; an error is a result too (DataLoader would change it)."""

    def __init__(self, load: Callable[[Any], Any], packs: bool) -> None:
        self.load = load
        self.packs = packs

    def __getitem__(self, request: Any) -> Any:
        try:
            result = self.load(request)
        except (ValueError, OSError) as error:
            result = error
        return _Packed(result) if self.packs else result


class _Packed:
    """A result as bytes, which need no shared memory on their way to another process."""

    def __init__(self, result: Any) -> None:
        content = io.BytesIO()
        _Pickler(content, protocol=5).dump(result)
        self.content = content.getvalue()

    def unpack(self) -> Any:
        return pickle.loads(self.content)

    def pin_memory(self) -> Any:
        """Called by a thread of DataLoader."""
        result = self.unpack()
        return result if isinstance(result, Exception) else result.pin_memory()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _as_is(item: Any) -> Any:
    return item


def _init_worker(worker: int) -> None:
    # Nothing in a sample is drawn at random; whatever a data set of one's own draws is seeded.
    np.random.seed(torch.initial_seed() % 2**32)
    # Ctrl-C and a job's SIGTERM go to the process group of the main process, which finishes its
    # update first and still needs samples then. Ignoring the signals would not do: at exit Python
    # ends the workers that are left by SIGTERM and waits for them.
    os.setpgrp()
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose main process was killed: it may be writing to a pipe nobody reads."""
    parent = multiprocessing.parent_process().pid
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
