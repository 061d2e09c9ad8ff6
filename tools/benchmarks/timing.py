"""Times that mean something on a machine that also does other things.

What is compared is run in turn, round by round, so that other work slows both alike: a ratio holds
where a time does not. (`torch.utils.benchmark` times one function after the other, warms up slow
ones more than they need, and looks for a CUDA compiler when it is imported.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds that one function took, round by round."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """Time of the function by itself; anything above it was other work of the machine."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best_ms(self) -> float:
        return 1e3 * self.best

    def times(self, other: Timing) -> float:
        """Ratio to the other's time: the median over the rounds of both."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def scaled(self, factor: float) -> Timing:
        """Extrapolated from a measured part of the work."""
        return Timing(tuple(factor * s for s in self.seconds))


def time_together(
    functions: Mapping[str, Callable[[], Any]],
    seconds: float = 2.0,
    min_rounds: int = 3,
    max_rounds: int = 1000,
    in_a_row: float = 0.0,
) -> dict[str, Timing]:
    """Times functions in turn, after a call of each to warm up.

    Args:
        functions: by name, called without arguments.
        seconds: rounds are begun until so much time has been measured in all.
        min_rounds: but at least so many.
        in_a_row: seconds; a function that takes less is called again and again so long in every
            round, and the mean counts. 0 is one call, which finds the processor's caches full of
            what the others do.

    Returns:
        Timings by name, of equally many rounds. Work left on a GPU counts to the call that gave
        it.
    """
    for function in functions.values():
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    total, rounds = 0.0, 0
    while rounds < min_rounds or (total < seconds and rounds < max_rounds):
        for name, function in functions.items():
            start, calls, passed = _clock(), 0, 0.0
            while calls == 0 or passed < in_a_row:
                function()
                calls, passed = calls + 1, _clock() - start
            taken[name].append(passed / calls)
            total += passed
        rounds += 1
    return {name: Timing(tuple(values)) for name, values in taken.items()}


@contextmanager
def processor_time() -> Iterator[None]:
    """Inside this block, what is timed is how long this process computed, on all its threads."""
    global _seconds
    before, _seconds = _seconds, time.process_time
    try:
        yield
    finally:
        _seconds = before


_seconds = time.perf_counter


def _clock() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return _seconds()
