"""Several processes on one machine, started by tools/launch.py: gloo on the CPU."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib.engine.checkpoint import load_checkpoint
from lib.engine.runs import read_lines
from tests.processes import finished, launch, start, wait_for
from tests.small_training import DATA, make_place, tool
from tools.launch import cause

FOUR_IMAGES = ["--set", "solver.images_per_update", "4", "run.checkpoint_period", "10"]
TRAIN = ["--cfg", "small.yaml", *DATA]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_place()


def assert_close(run, other):
    weights = load_checkpoint(Path(run, "ckpt", "model_step20.pth"))["model"]
    others = load_checkpoint(Path(other, "ckpt", "model_step20.pth"))["model"]
    torch.testing.assert_close(weights, others, rtol=1e-4, atol=1e-5)


def test_two_processes_train_and_test_as_one(place):
    twenty = [*FOUR_IMAGES, "solver.max_iter", "20"]
    assert tool("train_net")([*TRAIN, "--output", "one", *twenty]) == 0
    told = launch("train_net", *TRAIN, "--output", "two", *twenty)
    assert "20 updates of 4 images" in told and "on 2 x cpu" in told
    assert told.count("trained: two") == 1  # by the first process alone
    assert_close("one", "two")
    ones, twos = read_lines(Path("one/history.jsonl")), read_lines(Path("two/history.jsonl"))
    for one, two in zip(ones, twos, strict=True):
        for name in ("total", "bag", "refine_integrity", "lr", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name

    # What two have begun, one can finish.
    Path("mixed/ckpt").mkdir(parents=True)
    shutil.copy("two/ckpt/model_step10.pth", "mixed/ckpt")
    assert tool("train_net")([*TRAIN, "--output", "mixed", *twenty]) == 0
    assert_close("one", "mixed")

    assert tool("test_net")(["--run", "one", *DATA, "--output", "one.json"]) == 0
    launch("test_net", "--run", "one", *DATA)
    assert Path("one/test/mine/detections.json").read_bytes() == Path("one.json").read_bytes()
    assert len(list(Path("one/test/mine").iterdir())) == 2  # no journal is left


def test_a_test_that_ended_in_one_process_goes_on_in_another_number_of_them(place, capfd):
    assert tool("train_net")([*TRAIN, "--output", "run"]) == 0
    command = ["--run", "run", *DATA, "--threads", "1"]
    assert tool("test_net")([*command, "--output", "whole.json"]) == 0

    image = Path("images/e.png")
    content = image.read_bytes()
    image.write_bytes(content[:500])
    process = start("test_net", *command, ranks=2)
    told = finished(process)
    assert process.returncode == 2, told
    assert "e.png: the image is truncated" in told and "all others were ended" in told
    assert not Path("run/test/mine/detections.json").exists()

    image.write_bytes(content)
    capfd.readouterr()
    assert tool("test_net")(command) == 0
    done = re.search(r"resuming after (\d) images", capfd.readouterr().err)
    assert 2 <= int(done[1]) <= 4
    assert Path("run/test/mine/detections.json").read_bytes() == Path("whole.json").read_bytes()
    assert len(list(Path("run/test/mine").iterdir())) == 2


KILLER = """
import os, signal, sys, time
from pathlib import Path

from lib.engine.journal import Journal
from tests.small_training import tool

who, kind, count = os.environ["KILL"].split()
rank, passed = int(os.environ["RANK"]), 0


def moment(of_kind):
    global passed
    if of_kind == "image" and Path("killed").exists():
        time.sleep(3600)  # unless ended
    passed += of_kind == kind and rank == 0
    if passed == int(count) + 1:
        if who == "torchrun":
            victims = [os.getppid()]
        else:
            victims = map(int, [p.read_text() for p in Path("pids").glob(who)])
        Path("killed").touch()
        for victim in sorted(victims, key=os.getpid().__eq__):
            os.kill(victim, signal.SIGKILL)


def before_and_after(owner, name, kind, counts=lambda *_: True):
    function = getattr(owner, name)

    def replaced(*arguments, **options):
        if counts(*arguments):
            moment(kind)
        result = function(*arguments, **options)
        if counts(*arguments):
            moment(kind)
        return result

    setattr(owner, name, replaced)


Path("pids", str(rank)).write_text(str(os.getpid()))
moment("start")
before_and_after(Journal, "append", "image")
before_and_after(os, "replace", "merge")
before_and_after(Path, "unlink", "merge", lambda path: path.suffix == ".jsonl")
sys.exit(tool("test_net")(sys.argv[1:]))
"""
"""tools/test_net.py that sends SIGKILL to WHO when rank 0 comes to the moment KIND for the COUNT-th
time, from 0: as it starts, before and after an image, before and after each file that is written or
removed in the end. Ranks that live on after that do no image more."""


def test_a_shared_test_killed_at_random_moments_ends_in_the_same_file(place, monkeypatch, capfd):
    assert tool("train_net")([*TRAIN, "--output", "run"]) == 0
    command = ["--run", "run", *DATA, "--threads", "1", "--output"]
    assert tool("test_net")([*command, "whole.json"]) == 0
    Path("killer.py").write_text(KILLER)
    results = Path("found/with [1].json")

    def killed(ranks, who, moment):
        monkeypatch.setenv("KILL", f"{who} {moment}")
        Path("killed").unlink(missing_ok=True)
        shutil.rmtree("pids", ignore_errors=True)  # they may be those of other processes by now
        Path("pids").mkdir()
        process = start(Path("killer").absolute(), *command, results, ranks=ranks)
        told = finished(process)  # when the last rank has ended
        assert Path("killed").exists(), told
        assert process.returncode != 0, told
        assert "Traceback" not in told
        if who == "torchrun":
            assert "torchrun has died, and this process ends as well" in told
        else:
            assert re.search("process . was killed by SIGKILL .see above.; all others", told), told

    def done():
        lines = [p.read_bytes().split(b"\n") for p in results.parent.glob("*.jsonl")]
        return sum(len(of_rank) - 2 for of_rank in lines)

    rng = random.Random(time.time())
    killed(2, "torchrun", rng.choice(["start 0", "image 0", "image 1", "image 2"]))
    before = done()
    killed(3, rng.choice("012?"), rng.choice(["image 0", "image 1"]))
    assert before <= done()
    killed(2, rng.choice("01?"), f"merge {rng.randrange(6)}")
    capfd.readouterr()
    before = done()
    assert tool("test_net")([*command, str(results)]) == 0
    told = capfd.readouterr().err
    assert f"resuming after {before} images" in told or "complete already" in told
    assert results.read_bytes() == Path("whole.json").read_bytes()
    assert {p.name for p in results.parent.iterdir()} == {
        "with [1].json",
        "with [1].made_from.json",
    }


def test_a_signal_to_all_and_the_death_of_one_or_of_torchrun(place):
    long = [*TRAIN, "--output", "run", "--set", "solver.max_iter", "1000000"]
    process = start("train_net", *long, ranks=2)
    wait_for(process, lambda: read_lines(Path("run/history.jsonl")))
    process.send_signal(signal.SIGTERM)
    told = finished(process)
    assert process.returncode == 143, told
    assert told.count("stopped by SIGTERM; resume with --output run") == 1
    done = read_lines(Path("run/history.jsonl"))[-1]["iteration"]
    assert load_checkpoint(Path(f"run/ckpt/model_step{done}.pth"))["step"] == done

    process = start("train_net", *long, ranks=2)
    wait_for(process, lambda: read_lines(Path("run/history.jsonl"))[-1]["iteration"] > done)
    os.kill(rank_of(process, 1), signal.SIGKILL)
    told = finished(process)
    assert process.returncode not in (0, 143), told
    assert f"resuming after {done} updates" in told
    assert "another process of this training or test has failed or was killed" in told
    assert "all others were ended" in told

    def last():
        return read_lines(Path("run/history.jsonl"))[-1]["iteration"]

    before = last()
    process = start("train_net", *long, ranks=2)
    wait_for(process, lambda: last() not in (done, before))
    process.kill()  # torchrun
    told = finished(process)
    assert "torchrun has died, and this process ends as well" in told
    assert told.count("stopped by SIGTERM; resume with --output run") == 1
    assert load_checkpoint(Path(f"run/ckpt/model_step{last()}.pth"))["step"] == last()


PREPARING = """
import os, sys, time
from pathlib import Path

from lib.data import custom
from tests.small_training import tool

rank, real = os.environ["RANK"], custom.prepare


def prepare(*arguments):
    Path(f"prepared-by-{rank}").touch()
    time.sleep(1)  # for another rank to come here as well, if it did
    return real(*arguments)


custom.prepare = prepare
for module in list(sys.modules.values()):
    if getattr(module, "prepare", None) is real:
        module.prepare = prepare
sys.exit(tool("train_net")(sys.argv[1:]))
"""
"""tools/train_net.py that tells which ranks make a data set ready."""


def test_the_first_process_makes_a_data_set_ready_and_the_others_wait(place):
    Path("labels.csv").write_text("a,cat\nb,dog\nc,cat\nd,dog\n")
    Path("preparing.py").write_text(PREPARING)
    told = launch(
        Path("preparing").absolute(),
        *["--cfg", "small.yaml", "--images", "images", "--labels", "labels.csv", "--name", "own"],
        *["--proposals", "data/proposals/mine", "--clusters", "data/clusters/mine"],
        *["--output", "run", *FOUR_IMAGES, "solver.max_iter", "2"],
    )
    assert [p.name for p in Path().glob("prepared-by-*")] == ["prepared-by-0"]
    assert told.count("own.json, 4 images, 2 classes: cat, dog") == 1
    assert Path("run/ckpt/model_step2.pth").is_file()


def test_the_death_of_a_process_is_told_and_not_the_errors_that_follow():
    def told(*failures):
        return cause({n: SimpleNamespace(exitcode=e, timestamp=t) for n, (e, t) in failures})[0]

    assert told((0, (2, 100)), (1, (-9, 100)), (2, (-15, 100))) == 1
    assert told((0, (2, 100)), (1, (-9, 101)), (2, (2, 100))) == 1
    # What did not end when asked to is killed in the end, and has not begun it.
    assert told((1, (2, 100)), (0, (-15, 100)), (2, (-9, 700))) == 1
    assert told((1, (2, 101)), (0, (-15, 102)), (2, (1, 100))) == 2


def rank_of(launcher, rank):
    """The process id of a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile
            continue
        if parent == launcher.pid and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")
