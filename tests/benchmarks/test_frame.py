"""The table, the goals and the timing that all benchmarks share."""

import json
import time

import pytest
import torch
from benchmarks import BENCHMARKS, Benchmark, Conditions, Row
from benchmarks.report import table_text
from benchmarks.timing import Timing, processor_time, time_together

from tools import benchmark


@pytest.mark.parametrize(
    ("bounds", "met"),
    [
        ({}, None),
        ({"at_least": 2}, True),
        ({"at_least": 2.1}, False),
        ({"at_most": 2}, True),
        ({"at_most": 1.9}, False),
        ({"at_least": 1, "at_most": 1.9}, False),
        ({"at_least": 1, "at_most": 3}, True),
    ],
)
def test_goals(bounds, met):
    assert Row("x", 2.0, "s", **bounds).met is met


def test_what_is_no_number_meets_no_goal():
    assert Row("x", float("nan"), "s", at_most=1).met is False


def test_table():
    rows = [
        Row("a long name", 12.3456, "ms", at_most=20),
        Row("b", 1234.4, "x", at_least=1500, note="of a part"),
        Row("c", 0.00123, "s", note="of a part"),
    ]
    assert table_text(rows).splitlines() == [
        "              measured        goal",
        "a long name    12.3 ms    <= 20 ms  met",
        "b [1]          1,234 x  >= 1,500 x  MISSED",
        "c [1]        0.00123 s",
        "[1] of a part",
    ]


def test_timing_in_turns():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.02)

    times = time_together({"fast": lambda: calls.append("fast"), "slow": slow}, 0, min_rounds=4)
    assert calls == ["fast", "slow"] * 5  # a round to warm up
    assert len(times["slow"].seconds) == 4 and times["slow"].best >= 0.02
    assert times["slow"].times(times["fast"]) > 1


def test_timing_goes_on_for_the_given_time():
    times = time_together({"x": lambda: time.sleep(0.005)}, seconds=0.1, min_rounds=1)
    assert sum(times["x"].seconds) >= 0.1
    few = time_together({"x": lambda: None}, seconds=60, max_rounds=5)
    assert len(few["x"].seconds) == 5


def test_calls_in_a_row_count_by_their_mean():
    calls = []

    def costly_at_first():
        calls.append(1)
        time.sleep(0.05 if len(calls) == 2 else 0.001)  # the first call warms up

    times = time_together({"x": costly_at_first}, seconds=0, min_rounds=1, in_a_row=0.1)["x"]
    assert len(times.seconds) == 1 and len(calls) > 3
    assert times.best * (len(calls) - 1) >= 0.1 and times.best < 0.05


def test_ratios_are_taken_round_by_round():
    # The machine was busy in the second round: both took ten times as long.
    fast, slow = Timing((1.0, 10.0, 1.0)), Timing((5.0, 50.0, 7.0))
    assert slow.times(fast) == 5
    assert slow.scaled(10).times(fast) == 50
    assert (slow.best, slow.median, slow.best_ms) == (5, 7, 5000)


def test_processor_time_does_not_count_sleep():
    with processor_time():
        slept = time_together({"sleep": lambda: time.sleep(0.05)}, 0, min_rounds=2)["sleep"]
    assert slept.best < 0.04
    assert time_together({"sleep": lambda: time.sleep(0.05)}, 0)["sleep"].best >= 0.05


@pytest.fixture
def one_row(monkeypatch):
    def run(conditions):
        assert torch.get_num_threads() == 2
        yield Row("speed", conditions.seed, "m/s", at_least=10)

    monkeypatch.setitem(BENCHMARKS, "overlaps", Benchmark(run, "Of speed."))


def test_check_and_numbers(one_row, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    arguments = ["overlaps", "--threads", "2", "--device", "cpu"]
    assert benchmark.main([*arguments, "--seed", "10", "--check"]) == 0
    assert benchmark.main([*arguments, "--seed", "9"]) == 0
    assert benchmark.main([*arguments, "--seed", "9", "--check", "--json", str(path)]) == 1
    said = capsys.readouterr()
    assert "goals missed: speed" in said.err and "cores" in said.out and "torch" in said.out
    content = json.loads(path.read_text())
    assert content["benchmark"] == "overlaps" and content["missed"] == ["speed"]
    assert content["rows"][0]["value"] == 9 and content["rows"][0]["met"] is False
    assert content["machine"]["cpu"] and content["conditions"]["seed"] == 9


def test_unknown_name_and_bad_threads(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["nothing"])
    assert "overlaps" in capsys.readouterr().err
    assert benchmark.main(["overlaps", "--threads", "0"]) == 2
    assert "expected at least 1" in capsys.readouterr().err
    assert benchmark.main(["overlaps", "--processor-time", "--threads", "2"]) == 2
    assert "one thread" in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs(name):
    rows = list(BENCHMARKS[name].run(Conditions(quick=True)))
    assert rows
    for row in rows:
        assert row.value == row.value and row.value >= 0, row
    assert len({row.what for row in rows}) == len(rows)
