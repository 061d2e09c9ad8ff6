"""Training and testing that are killed, or run out of disk, at any moment."""

import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from lib.engine import inference
from lib.engine.checkpoint import checkpoint_step, list_checkpoints, load_checkpoint
from lib.engine.journal import Journal
from lib.engine.runs import read_lines
from lib.engine.trainer import Trainer
from tests.processes import PATIENCE, finished, start
from tests.small_training import DATA, make_place, tool

TRAIN = ["--cfg", "small.yaml", *DATA, "--threads", "1"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_place()


def kill_when(process, condition, pause=0.0):
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(pause)
    process.kill()
    told = finished(process)
    return process.returncode, told


def assert_same_end(run, other, step):
    one, two = (load_checkpoint(Path(r, "ckpt", f"model_step{step}.pth")) for r in (run, other))
    for key in ("model", "step", "class_names", "config"):
        assert_same(one[key], two[key])
    for a, b in zip(*(c["optimizer"]["state"].values() for c in (one, two)), strict=True):
        assert_same(a, b)
    assert_same(one["rng"], two["rng"])


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_killed_at_random_moments_training_ends_in_the_same_bits(place):
    options = [*TRAIN, "--set", "solver.max_iter", "60", "run.checkpoint_period", "1"]
    options += ["run.image_period", "7", "input.num_workers", "1"]
    assert tool("train_net")([*options, "--output", "whole"]) == 0

    history, ended_by, kills = Path("killed/history.jsonl"), None, 0
    rng = random.Random(time.time())
    while ended_by != 0:
        done = len(read_lines(history))
        process = start("train_net", *options, "--output", "killed")
        if kills == 3:
            told = finished(process)
            assert process.returncode == 0, told
            break
        more = done + rng.randint(1, 8)
        reached = lambda more=more: len(read_lines(history)) >= more  # noqa: E731
        ended_by, told = kill_when(process, reached, rng.uniform(0, 0.2))
        assert ended_by in (-signal.SIGKILL, 0), told
        kills += 1
    assert kills > 0
    assert_same_end("whole", "killed", 60)
    assert [e["iteration"] for e in read_lines(history)] == list(range(1, 61))
    assert {p.name for p in Path("killed/ckpt").iterdir()} == {
        f"model_step{n}.pth" for n in (58, 59, 60)
    }


def test_killed_testing_ends_in_the_same_file(place):
    assert tool("train_net")([*TRAIN, "--output", "run"]) == 0
    many = "[" + ", ".join(["64"] * 40) + "]"
    command = ["--run", "run", *DATA, "--threads", "1", "--set", "test.scales", many]
    assert tool("test_net")(command) == 0
    results = Path("run/test/mine/detections.json")
    whole = results.read_bytes()
    results.unlink()

    journal = results.with_name("detections.journal.jsonl")
    process = start("test_net", *command)
    code, told = kill_when(
        process, lambda: journal.is_file() and journal.read_bytes().count(b"\n") >= 3
    )
    assert code == -signal.SIGKILL, told
    assert not results.exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 2 <= done < 5
    process = start("test_net", *command)
    told = finished(process)
    assert f"resuming after {done} images" in told
    assert results.read_bytes() == whole


def test_what_another_process_finished_meanwhile_is_not_done_again(place, monkeypatch, capfd):
    assert tool("train_net")([*TRAIN, "--output", "run"]) == 0
    command = ["--run", "run", *DATA, "--threads", "1"]
    assert tool("test_net")(command) == 0
    there = {path: path.read_bytes() for path in Path("run/test/mine").iterdir()}
    for path in there:
        path.unlink()

    class OpenedAtLast(Journal):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            for path, content in there.items():
                path.write_bytes(content)

    monkeypatch.setattr(inference, "Journal", OpenedAtLast)
    capfd.readouterr()
    assert tool("test_net")(command) == 0
    assert "complete already" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in Path("run/test/mine").iterdir()} == there


@pytest.fixture
def full_disk():
    """Calls to it say how many bytes a file may have from now on; the error is the system's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(
        resource.RLIMIT_FSIZE, (soft if size is None else size, hard)
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_checkpoint_before(place, full_disk, monkeypatch, capfd):
    assert tool("train_net")([*TRAIN, "--output", "whole"]) == 0
    size = Path("whole/ckpt/model_step4.pth").stat().st_size
    original = Trainer.update

    def then_full(self, samples):
        values = original(self, samples)
        if self.iteration == 3:
            full_disk(size // 2)
        return values

    monkeypatch.setattr(Trainer, "update", then_full)
    assert tool("train_net")([*TRAIN, "--output", "run"]) == 2
    full_disk(None)
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: run/ckpt/model_step4.pth: the checkpoint could not be written (")
    assert "run/ckpt/model_step2.pth is whole; make room" in told
    assert [checkpoint_step(p) for p in list_checkpoints(Path("run/ckpt"))] == [2]
    assert len(list(Path("run/ckpt").iterdir())) == 1

    monkeypatch.setattr(Trainer, "update", original)
    assert tool("train_net")([*TRAIN, "--output", "run"]) == 0
    assert_same_end("whole", "run", 4)


def test_a_folder_that_cannot_be_written_is_known_at_the_start(place, monkeypatch, capfd):
    Path("file").touch()
    assert tool("train_net")([*TRAIN, "--output", "file/run"]) == 2
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert told == (
        "error: file/run: nothing can be written there (Not a directory); name another --output, "
        "or make room"
    )


def test_a_damaged_newest_checkpoint_is_passed_over(place, capfd):
    assert tool("train_net")([*TRAIN, "--output", "whole"]) == 0
    assert tool("train_net")([*TRAIN, "--output", "run"]) == 0
    newest = Path("run/ckpt/model_step4.pth")
    newest.write_bytes(newest.read_bytes()[:1000])
    capfd.readouterr()
    assert tool("train_net")([*TRAIN, "--output", "run"]) == 0
    told = capfd.readouterr().err
    assert "model_step4.pth: not a readable checkpoint" in told
    assert "resuming after 2 updates" in told
    assert_same_end("whole", "run", 4)
