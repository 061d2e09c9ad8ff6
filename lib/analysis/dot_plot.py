"""A dot plot as SVG: every measured value is a dot, the mean of a row a line.

With few seeds, a bar with whiskers would suggest more than they tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from statistics import fmean

_LABEL, _WIDTH, _GAP, _ROW, _TOP, _BOTTOM = 170, 300, 30, 26, 34, 40
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""By Okabe and Ito, distinguishable for most readers."""
_INK, _GRID = "#24292f", "#d0d7de"
_TICKS = 6
"""Approximate maximum number of ticks of a scale."""


Rows = Mapping[str, Sequence[float]]
"""Label -> one value for each series (seed), NaN where there is none."""


def dot_plot(panels: Mapping[str, Rows], series: Sequence[str], caption: str = "") -> str:
    """The figure, on white paper.

    Args:
        panels: at least one plot by title, all with the same rows; labels stand at the left.
        series: what the values of a row are, for the legend; each has a colour.
    """
    labels = list(next(iter(panels.values())))
    height = _TOP + _ROW * len(labels) + _BOTTOM
    width = _LABEL + len(panels) * (_WIDTH + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif" '
        f'font-size="13" fill="{_INK}">',
        f"<title>{escape(caption)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for row, label in enumerate(labels):
        parts.append(_text(_LABEL - 12, _row_y(row) + 4, label, "end"))
    for number, (title, rows) in enumerate(panels.items()):
        parts += _panel(title, rows, _LABEL + number * (_WIDTH + _GAP))
    x = _LABEL
    for name, colour in zip(series, cycle(_COLOURS), strict=False):
        parts.append(f'<circle cx="{x + 5}" cy="{height - 10}" r="4" fill="{colour}"/>')
        parts.append(_text(x + 14, height - 6, name))
        x += 30 + 8 * len(name)
    parts.append(f'<path d="M{x + 5} {height - 17}v14" stroke="{_INK}" stroke-width="2"/>')
    parts.append(_text(x + 14, height - 6, "mean"))
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, rows: Rows, left: int) -> list[str]:
    finite = [v for values in rows.values() for v in values if math.isfinite(v)]
    ticks = _ticks(min(finite, default=0.0), max(finite, default=1.0))
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return round(left + _WIDTH * (value - low) / (high - low), 1)

    bottom = _TOP + _ROW * len(rows)
    parts = [_text(left + _WIDTH / 2, 18, title, "middle", "bold")]
    for tick in ticks:
        parts.append(f'<path d="M{x(tick)} {_TOP - 6}V{bottom}" stroke="{_GRID}"/>')
        parts.append(_text(x(tick), bottom + 15, f"{tick:g}", "middle"))
    for row, (label, values) in enumerate(rows.items()):
        known = [v for v in values if math.isfinite(v)]
        y = _row_y(row)
        if known:
            mean = x(fmean(known))
            parts.append(f'<path d="M{mean} {y - 9}v18" stroke="{_INK}" stroke-width="2"/>')
        for value, colour in zip(values, cycle(_COLOURS), strict=False):
            if math.isfinite(value):
                parts.append(
                    f'<circle cx="{x(value)}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.85">'
                    f"<title>{escape(label)}: {value:.1f}</title></circle>"
                )
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers at equal steps, from at or below `low` to at or above `high`."""
    rough = max(high - low, 1e-6) / (_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(first, max(last, first + 1) + 1)]


def _row_y(row: int) -> float:
    return _TOP + _ROW * (row + 0.5)


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )
