"""The benchmarks of `tools/benchmark.py`, each with its goals.

A benchmark is a function from `Conditions` to rows; it stands above the engine and may import all
of lib. A further one is a file in this folder with a function `run`, and its line below.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import NamedTuple

from benchmarks.report import Conditions, Row

__all__ = ["BENCHMARKS", "Benchmark", "Conditions", "Row"]


class Benchmark(NamedTuple):
    run: Callable[[Conditions], Iterator[Row]]
    help: str
    """One line for `tools/benchmark.py --help`."""


def in_file(name: str) -> Callable[[Conditions], Iterator[Row]]:
    """`run` of a file of this folder, which is imported only then: a package that one benchmark
    needs may be missing where another one is run."""
    return lambda conditions: import_module(f"benchmarks.{name}").run(conditions)


BENCHMARKS = {
    "evaluation": Benchmark(in_file("evaluation"), "Time the evaluation of a large result file."),
    "frozen": Benchmark(
        in_file("frozen"), "Time training with the features of frozen layers kept."
    ),
    "inference": Benchmark(in_file("inference"), "Time testing, as configured and plainly."),
    "loader": Benchmark(in_file("loader"), "Time reading, beside the training that waits for it."),
    "memory": Benchmark(in_file("memory"), "Measure the peak memory of an update."),
    "mining": Benchmark(in_file("mining"), "Time the mining of instances among many proposals."),
    "overlaps": Benchmark(in_file("overlaps"), "Time IoU and containment of all proposal pairs."),
    "train": Benchmark(in_file("train"), "Time training updates, as configured and plainly."),
}
