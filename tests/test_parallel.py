"""One failing image does not stop the others; a dead worker is an error and no hang."""

import os
import sys

import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError

from lib.parallel import failures_text, for_each, workers


def square(number):
    if number == 3:
        raise ValueError("three is bad")
    if number == 4:
        return 1 / 0
    if number == 5:
        raise FileNotFoundError("five is gone")
    return number**2


def die(number):
    os._exit(1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_and_failures_in_order(jobs):
    tasks = ((f"image {n}", (n,)) for n in range(8))
    results, failures = for_each(square, tasks, 8, jobs)
    assert list(results.items()) == [(f"image {n}", n**2) for n in (0, 1, 2, 6, 7)]
    assert failures == {
        "image 3": "three is bad",
        "image 4": "ZeroDivisionError: division by zero",
        "image 5": "five is gone",
    }


def test_a_dead_worker_is_an_error():
    with pytest.raises(TerminatedWorkerError):
        for_each(die, [(str(n), (n,)) for n in range(4)], 4, jobs=2)


def test_nothing_to_do():
    assert for_each(square, [], 0) == ({}, {})


def test_failures_as_text():
    failures = {f"{n}.jpg": "why" for n in range(5)}
    lines = failures_text(failures, 9, limit=3).splitlines()
    assert lines[0] == "5 of 9 images failed:" and lines[1] == "  0.jpg: why"
    assert len(lines) == 5 and lines[-1] == "  ... and 2 more"
    assert len(failures_text(failures, 9).splitlines()) == 6


def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match="--backend dask and --scheduler ADDRESS"):
        workers("dask").__enter__()
    with pytest.raises(ValueError, match="--backend dask and --scheduler ADDRESS"):
        workers("local", "tcp://127.0.0.1:1").__enter__()


def test_without_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "lib.dask_cluster", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"distributed, .*pip install -e '\.\[dask\]'"):
        workers("dask", "tcp://127.0.0.1:9").__enter__()
