"""Several images of an update at a time, on the threads of one process.

The operations on one image are too small to be split well among threads, and splitting them hurts
where the processor has other work. Whole images are independent: every lane works on its own with
one thread, on weights that all lanes share, and keeps a gradient of its own until the end of the
update.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import nn


class Lanes:
    """A model and, for every further lane, a replica of it that shares its weights.

    Which lane an image takes depends on its number alone, and gradients are added lane by lane,
    so that the result does not depend on which is faster. With one lane there is no thread.

    Args:
        count: lanes, 1 or more.
    """

    def __init__(self, model: nn.Module, count: int = 1) -> None:
        self.models = [model, *(_replica(model) for _ in range(count - 1))]
        self._parameters = [list(m.parameters()) for m in self.models]
        self._threads = [ThreadPoolExecutor(1) for _ in range(count)] if count > 1 else []
        self._futures: list[Future] = []

    def submit(self, number: int, function: Callable[..., Any], *arguments: Any) -> Future:
        """Calls `function(model, *arguments)` on the lane of image `number`."""
        lane = number % len(self.models)
        if self._threads:
            future = self._threads[lane].submit(function, self.models[lane], *arguments)
            self._futures.append(future)
            return future
        future = Future()
        future.set_result(function(self.models[lane], *arguments))
        return future

    def finish(self) -> None:
        """Waits for all lanes, also when one has failed."""
        wait(self._futures)
        self._futures.clear()

    def gather_gradients(self) -> None:
        """Adds the gradients of all lanes into the model's; those of the replicas are gone then."""
        for parameters in self._parameters[1:]:
            sums, terms = [], []
            for mine, theirs in zip(self._parameters[0], parameters, strict=True):
                if theirs.grad is None:
                    continue
                if mine.grad is None:
                    mine.grad = theirs.grad
                else:
                    sums.append(mine.grad)
                    terms.append(theirs.grad)
                theirs.grad = None
            if sums:
                torch._foreach_add_(sums, terms)

    def drop_gradients(self) -> None:
        for parameters in self._parameters:
            for parameter in parameters:
                parameter.grad = None


def _replica(model: nn.Module) -> nn.Module:
    replica = copy.deepcopy(model)
    shared = [*model.parameters(), *model.buffers()]
    for own, theirs in zip([*replica.parameters(), *replica.buffers()], shared, strict=True):
        own.data = theirs.data
    return replica
