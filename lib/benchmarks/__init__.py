"""What `tools/benchmark.py` can measure, each with its goals.

A benchmark is a function from `Conditions` to rows; it stands above the engine and may import all
of lib. A further one is a file in this folder with a function `run`, and its line below.
"""

from collections.abc import Callable, Iterator
from importlib import import_module

from lib.benchmarks.report import Conditions, Row

__all__ = ["BENCHMARKS", "Conditions", "Row"]

Benchmark = Callable[[Conditions], Iterator[Row]]


def in_file(name: str) -> Benchmark:
    """`run` of a file of this folder, which is imported only then: a package that one benchmark
    needs may be missing where another one is run."""
    return lambda conditions: import_module(f"lib.benchmarks.{name}").run(conditions)


BENCHMARKS: dict[str, Benchmark] = {
    "evaluation": in_file("evaluation"),
    "inference": in_file("inference"),
    "loader": in_file("loader"),
    "memory": in_file("memory"),
    "mining": in_file("mining"),
    "overlaps": in_file("overlaps"),
    "train": in_file("train"),
}
