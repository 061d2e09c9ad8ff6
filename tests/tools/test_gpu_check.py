"""The checks of a GPU on the CPU: the checks themselves, and the tool that runs them."""

import json
import sys
import time

import benchmarks.gpu
import pytest
import torch
from benchmarks import Conditions, Row
from benchmarks.gpu_checks import CHECKS, Check

from lib.files import write_json
from tests.small_training import tool

ROWS = [{"what": "speed", "value": 1.0, "unit": "s"}]


@pytest.fixture
def module():
    return benchmarks.gpu


# Those left out are programs of this project, with tests of their own.
@pytest.mark.parametrize(
    "name", ["speed", "overlaps", "mining", "losses", "scores", "sizes", "nccl", "trace"]
)
def test_checks_at_small_sizes(name):
    rows = list(CHECKS[name].run(Conditions(quick=True)))
    assert rows
    missed = [row for row in rows if row.met is False]
    assert not missed


def test_checks_see_what_is_wrong(monkeypatch):
    """Computed as if the device gave other numbers than the CPU."""
    real, calls = torch.Tensor.to, []

    def to(tensor, *args, **options):
        moved = real(tensor, *args, **options)
        if args and isinstance(args[0], torch.device) and tensor.dtype == torch.bool:
            calls.append(args)
            return moved.roll(1, dims=0)
        return moved

    monkeypatch.setattr(torch.Tensor, "to", to)
    assert any(row.met is False for row in CHECKS["overlaps"].run(Conditions(quick=True)))
    assert calls


def test_a_run_of_the_tool(module, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert (
        tool("benchmark gpu")(["overlaps", "waiting", "--device", "cpu", "--json", str(path)]) == 0
    )
    said = capsys.readouterr().out
    assert "2 of 2 ok" in said and "nothing to check without a GPU" in said
    content = json.loads(path.read_text())
    assert content["machine"]["cpu"] and content["device"] == "cpu"
    rows = content["checks"]["overlaps"]["rows"]
    assert [row["value"] for row in rows if "unlike" in row["what"]] == [0, 0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(module, capsys):
    assert tool("benchmark gpu")([]) == 2
    assert "no GPU here" in capsys.readouterr().err
    assert tool("benchmark gpu")(["nothing", "--device", "cpu"]) == 2
    assert "there is no check nothing" in capsys.readouterr().err


def test_what_becomes_of_a_check(module, monkeypatch):
    def of(outcome, rows=None, check=None, left=100):
        def ended(command, limit):
            if rows is not None:
                write_json(command[command.index("--json") + 1], rows)
            return outcome

        monkeypatch.setattr(module, "_ended", ended)
        found = module.run_check("x", check or Check(None, 50), Conditions(quick=True), left)
        return found["status"], found["why"]

    assert of((0, ""), ROWS) == ("ok", "")
    slow = {"what": "it", "value": 1.0, "unit": "s", "at_most": 0.5}
    assert of((0, ""), [*ROWS, slow]) == ("missed", "it")
    assert of((1, "Traceback\nRuntimeError: CUDA error\n")) == (
        "failed",
        "RuntimeError: CUDA error",
    )
    cuda = "Traceback\ntorch.AcceleratorError: CUDA error: assert\nCompile with DSA\n"
    assert of((1, cuda)) == ("failed", "torch.AcceleratorError: CUDA error: assert")
    golden = "E       AssertionError: unlike\n=====\nFAILED tests/a.py::b\n"
    assert of((1, golden)) == ("failed", "AssertionError: unlike")
    assert of((1, "Killed")) == ("failed", "Killed")
    assert of((-11, "")) == ("failed", "ended with code -11")
    assert of((None, "")) == ("failed", "not done after 50 s")
    assert of((None, ""), left=20) == ("failed", "not done after 20 s")
    assert of((0, ""), left=1) == ("left out", "no time is left")
    missing = Check(None, 50, needs=("torch", "no_such_package"))
    assert of((0, ""), check=missing) == ("left out", "not installed: no_such_package")


def test_the_next_check_runs_after_a_failure(module, monkeypatch, tmp_path, capsys):
    outcomes = iter([(1, "ValueError: bad"), (0, "")])

    def ended(command, limit):
        outcome = next(outcomes)
        if outcome[0] == 0:
            write_json(command[command.index("--json") + 1], ROWS)
        return outcome

    monkeypatch.setattr(module, "_ended", ended)
    path = tmp_path / "numbers.json"
    assert tool("benchmark gpu")(["speed", "mining", "--device", "cpu", "--json", str(path)]) == 1
    checks = json.loads(path.read_text())["checks"]
    assert (checks["speed"]["status"], checks["mining"]["status"]) == ("failed", "ok")
    assert Row(**checks["mining"]["rows"][0]).met is None
    assert "ValueError: bad" in capsys.readouterr().out


def test_a_check_that_hangs_is_ended_with_all_that_it_started(module, tmp_path):
    child = f"import time; time.sleep(3); open({str(tmp_path / 'still')!r}, 'w')"
    text = (
        "import subprocess, sys; print('begun', flush=True); "
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    assert module._ended([sys.executable, "-c", text], 1.5) == (None, "begun\n")
    time.sleep(3)
    assert not (tmp_path / "still").exists()
    code, said = module._ended([sys.executable, "-c", "import sys; sys.exit(3)"], 60)
    assert (code, said) == (3, "")
