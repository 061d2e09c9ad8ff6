"""Means over a few seeds, and tests whether two variants differ by more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True)
class Spread:
    """A mean over seeds with its sample standard deviation (0 for a single seed)."""

    mean: float
    deviation: float
    count: int

    @property
    def half_width(self) -> float:
        """Of the 95% confidence interval of the mean by Student's t; infinite for one seed."""
        if self.count < 2:
            return math.inf
        return float(student.ppf(0.975, self.count - 1)) * self.deviation / math.sqrt(self.count)

    @property
    def excludes_zero(self) -> bool:
        """Whether that interval lies on one side of 0."""
        return abs(self.mean) > self.half_width

    def percent(self, signed: bool = False) -> str:
        """`92.2 ± 1.3` for fractions in [0, 1]; with a plus sign if `signed`."""
        mean = f"{100 * self.mean:+.1f}" if signed else f"{100 * self.mean:.1f}"
        return f"{mean} ± {100 * self.deviation:.1f}" if self.count > 1 else mean


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without any value."""
    if not values:
        raise ValueError("no values to take the mean of")
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), deviation, len(values))


def paired(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Differences of two variants seed by seed, so that effects of the seed cancel.

    Raises:
        ValueError: the variants have different numbers of seeds.
    """
    return spread([v - r for v, r in zip(values, reference, strict=True)])


Table = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Variant -> seed -> metric -> share in [0, 1]."""


def comparison_table(
    table: Table, metrics: Sequence[str], reference: str, compared: Sequence[str]
) -> str:
    """Mean and standard deviation of every variant, and its differences to one of them.

    Args:
        reference: the variant that the others are compared with, over their common seeds; without
            it in the table the differences are left out.
        compared: metrics whose differences are told. `*` marks those whose 95% confidence interval
            (Student's t over the seeds) leaves out 0.

    Returns:
        A Markdown table, in percent.
    """
    compared = compared if reference in table else ()
    differences = [f"{m.upper()} to {reference}" for m in compared]
    titles = ["variant", "seeds", *(m.upper() for m in metrics), *differences]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for variant, of_seed in table.items():
        cells = [spread([v[m] for v in of_seed.values()]).percent() for m in metrics]
        for metric in compared:
            pairs = [
                (values[metric], table[reference][seed][metric])
                for seed, values in of_seed.items()
                if seed in table[reference]
            ]
            cells.append(_difference(pairs) if variant != reference and pairs else "")
        lines.append("| " + " | ".join([variant, str(len(of_seed)), *cells]) + " |")
    return "\n".join(lines)


def _difference(pairs: Sequence[tuple[float, float]]) -> str:
    difference = paired(*zip(*pairs, strict=True))
    return difference.percent(signed=True) + (" *" if difference.excludes_zero else "")
