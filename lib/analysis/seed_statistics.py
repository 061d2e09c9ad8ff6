"""Means over a few seeds, and tests whether two variants differ by more than chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from scipy.stats import t as student


class Spread:
    """A mean over seeds with its sample standard deviation (0 for a single seed).

    Raises:
        ValueError: no values.
    """

    def __init__(self, values: Sequence[float]) -> None:
        if not values:
            raise ValueError("no values to take the mean of")
        self.count = len(values)
        self.mean = statistics.fmean(values)
        self.deviation = statistics.stdev(values) if self.count > 1 else 0.0

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
        mean = f"{100 * self.mean:{'+' if signed else ''}.1f}"
        return f"{mean} ± {100 * self.deviation:.1f}" if self.count > 1 else mean


def paired(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Differences of two variants seed by seed, so that effects of the seed cancel.

    Raises:
        ValueError: the variants have different numbers of seeds.
    """
    return Spread([v - r for v, r in zip(values, reference, strict=True)])


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (titles, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(titles), *lines[1:]])


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
    rows = []
    for variant, of_seed in table.items():
        row = [variant, str(len(of_seed))]
        row += [Spread([v[m] for v in of_seed.values()]).percent() for m in metrics]
        for metric in compared:
            pairs = [
                (values[metric], table[reference][seed][metric])
                for seed, values in of_seed.items()
                if seed in table[reference] and variant != reference
            ]
            if not pairs:
                row.append("")
                continue
            difference = paired(*zip(*pairs, strict=True))
            row.append(difference.percent(signed=True) + " *" * difference.excludes_zero)
        rows.append(row)
    return markdown_table(["variant", "seeds", *(m.upper() for m in metrics), *differences], rows)
