"""Several images of an update at a time, on the threads of one process.

The operations on one image are too small to be split well among threads, and splitting them hurts
where the processor has other work. Whole images are independent: every lane works on its own with
one thread, on weights that all lanes share, and keeps a gradient of its own until the end of the
update.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor, nn


class SideBySide:
    """Works on several images at a time, on the cores of a CPU; only sums are rounded otherwise.

    Which lane an image takes depends on its number alone, and gradients are added lane by lane,
    so that the result does not depend on which is faster.

    Args:
        forward, criterion: as for OneByOne, in whose place this stands.
        count: lanes. The first works on `model`, the others on replicas that share its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., tuple[Any, ...]],
        criterion: Callable[..., dict[str, Tensor]],
        count: int,
    ) -> None:
        self.models = [model, *(_replica(model) for _ in range(count - 1))]
        self.forward, self.criterion = forward, criterion
        self._parameters = [list(m.parameters()) for m in self.models]
        self._threads = [ThreadPoolExecutor(1) for _ in self.models]

    def __call__(
        self, images: Iterable[tuple[Any, torch.Generator]], weigh: Callable[..., Any]
    ) -> list[dict[str, Tensor]]:
        def backward(model: nn.Module, sample: Any, generator: torch.Generator) -> dict:
            total, values = weigh(self.criterion(*self.forward(model, sample, generator)))
            total.backward()
            return values

        for parameter in (p for of_lane in self._parameters for p in of_lane):
            parameter.grad = None
        found = self.map(backward, images)
        self.gather_gradients()
        return found

    def map(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> list[Any]:
        """`function(model, *item)` of every item; waits for all lanes, also when one has failed."""
        pending = []
        try:
            for number, item in enumerate(items):
                lane = number % len(self.models)
                pending.append(self._threads[lane].submit(function, self.models[lane], *item))
        finally:
            wait(pending)
        return [future.result() for future in pending]

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


def _replica(model: nn.Module) -> nn.Module:
    replica = copy.deepcopy(model)
    shared = [*model.parameters(), *model.buffers()]
    for own, theirs in zip([*replica.parameters(), *replica.buffers()], shared, strict=True):
        own.data = theirs.data
    return replica
