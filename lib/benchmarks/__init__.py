"""What `tools/benchmark.py` can measure, each with its goals.

A benchmark is a function from `Conditions` to rows; it stands above the engine and may import all
of lib. A further one is a file in this folder and its line below.
"""

from collections.abc import Callable, Iterator

from lib.benchmarks import evaluation, inference, loader, memory, mining, overlaps, train
from lib.benchmarks.report import Conditions, Row

BENCHMARKS: dict[str, Callable[[Conditions], Iterator[Row]]] = {
    "evaluation": evaluation.run,
    "inference": inference.run,
    "loader": loader.run,
    "memory": memory.run,
    "mining": mining.run,
    "overlaps": overlaps.run,
    "train": train.run,
}

__all__ = ["BENCHMARKS", "Conditions", "Row"]
