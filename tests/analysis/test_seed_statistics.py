"""Means, spreads and paired differences over seeds."""

import math

import pytest

from lib.analysis.seed_statistics import Spread, comparison_table, paired


def test_spread_by_hand():
    found = Spread([0.1, 0.2, 0.3])
    assert (found.mean, found.deviation) == pytest.approx((0.2, 0.1))
    # t of 95% with two degrees of freedom is 4.3027 (any table).
    assert found.half_width == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert not found.excludes_zero and Spread([0.2, 0.21, 0.19]).excludes_zero
    assert Spread([-0.2, -0.21, -0.19]).excludes_zero
    assert found.percent() == "20.0 ± 10.0" and found.percent(signed=True) == "+20.0 ± 10.0"


def test_one_seed_shows_nothing_but_itself():
    assert Spread([0.5]).percent() == "50.0"
    assert not Spread([0.5]).excludes_zero
    with pytest.raises(ValueError, match="no values"):
        Spread([])


def test_what_the_seeds_share_cancels():
    assert not Spread([0.1, 0.5, 0.9]).excludes_zero
    difference = paired([0.2, 0.6, 1.0], [0.1, 0.5, 0.9])
    assert difference.mean == pytest.approx(0.1) and difference.deviation == pytest.approx(0)
    assert difference.excludes_zero
    with pytest.raises(ValueError):
        paired([0.1], [0.1, 0.2])


def test_comparison_table():
    def seeds(*values):
        return {str(n): {"ap50": v, "ap75": v / 2} for n, v in enumerate(values, 1)}

    table = {"a": seeds(0.1, 0.21), "b": seeds(0.5, 0.6, 0.7), "c": {"9": {"ap50": 1, "ap75": 1}}}
    lines = comparison_table(table, ["ap50", "ap75"], "b", ["ap50"]).split("\n")
    assert lines[0] == "| variant | seeds | AP50 | AP75 | AP50 to b |"
    # a and b share the seeds 1 and 2: differences -40 and -39, t of one degree of freedom 12.7.
    assert lines[2] == "| a | 2 | 15.5 ± 7.8 | 7.8 ± 3.9 | -39.5 ± 0.7 * |"
    assert lines[3] == "| b | 3 | 60.0 ± 10.0 | 30.0 ± 5.0 |  |"
    assert lines[4] == "| c | 1 | 100.0 | 100.0 |  |"
    assert "to b" not in comparison_table({"a": table["a"]}, ["ap50"], "b", ["ap50"])
