"""tools/train_net.py and tools/test_net.py on a small data set made by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from lib.config import load_config
from lib.engine.checkpoint import load_checkpoint, save_checkpoint
from lib.engine.runs import read_lines
from lib.proposals import rle
from lib.proposals.regions import encode
from lib.proposals.store import ProposalStore
from tests.small_training import DATA, TOOLS, make_place, masks, tool, write_json_file


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_place()
    return tmp_path


def train(*options, output="run"):
    return tool("train_net")(["--cfg", "small.yaml", *DATA, "--output", output, *options])


def test(*options, run="run"):
    return tool("test_net")(["--run", run, *DATA, *options])


test.__test__ = False


def weights_at(run, step):
    return load_checkpoint(Path(run) / "ckpt" / f"model_step{step}.pth")["model"]


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_from_labels_to_detections(place, capfd):
    assert train() == 0
    told = capfd.readouterr().err
    assert "4 images, 2 classes: cat, dog" in told
    assert "leaves out 1 of 5 images, which have no label" in told
    run = place / "run"
    assert {p.name for p in run.iterdir()} == {
        "config.yaml",
        "environment.json",
        "log.txt",
        "history.jsonl",
        "ckpt",
        "tensorboard",
    }
    history = read_lines(run / "history.jsonl")
    assert [entry["iteration"] for entry in history] == [1, 2, 3, 4]
    names = {"bag", "pcl", "refine_bag", "refine_cls", "refine_integrity", "total"}
    assert names <= history[0].keys()
    state = load_checkpoint(run / "ckpt" / "model_step4.pth")
    assert (state["step"], state["train_size"], state["batch_size"]) == (4, 4, 2)
    assert state["class_names"] == ["cat", "dog"]
    config = load_config(run / "config.yaml")
    assert state["config"] == config.model_dump(mode="json")
    assert state["environment"] == json.loads((run / "environment.json").read_text())
    assert {"packages", "git", "command"} <= state["environment"].keys()

    assert test() == 0
    folder = run / "test" / "mine"
    assert {p.name for p in folder.iterdir()} == {"detections.json", "detections.made_from.json"}
    results = json.loads((folder / "detections.json").read_text())
    assert {r["image_id"] for r in results} == {100, 101, 102, 103, 104}
    assert {r["category_id"] for r in results} == {7, 9}
    known = {tuple(m.ravel()) for m in masks()}
    for result in results:
        assert set(result) == {"image_id", "category_id", "score", "bbox", "segmentation"}
        assert 0 < result["score"] < 1
        mask = rle.rle_to_mask(result["segmentation"]).astype(bool)
        assert tuple(mask.ravel()) in known
        rows, columns = np.nonzero(mask)
        x, y, width, height = result["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


def test_pictures_and_a_profile_change_nothing(place, capfd):
    assert train("--set", "run.image_period", "0", output="plain") == 0
    assert train("--profile", "--set", "run.image_period", "2", output="seen") == 0
    told = capfd.readouterr().err
    assert_same(weights_at("plain", 4), weights_at("seen", 4))
    pictures = sorted(Path("seen/mining").iterdir())
    assert [p.name for p in pictures] == ["update_000002.png", "update_000004.png"]
    assert cv2.imread(str(pictures[0])).shape[1] > 3 * 512  # the image and two stages
    assert Path("seen/profile/trace_rank0.json").is_file()
    assert not Path("plain/mining").exists() and not Path("plain/profile").exists()
    (line,) = [line for line in told.splitlines() if line.startswith("trained: seen; 8 images in ")]
    for where in ("seen/ckpt/model_step4.pth", "seen/history.jsonl", "seen/mining", "seen/log.txt"):
        assert where in line


def test_image_labels_keep_their_classes_and_all_detections(place):
    assert train() == 0
    assert test("--image-labels", "--set", "test.detections_per_image", "1") == 0
    results = json.loads(Path("run/test/mine/detections_image_labels.json").read_text())
    assert {(r["image_id"], r["category_id"]) for r in results} == {
        (100, 7),
        (101, 9),
        (102, 7),
        (103, 9),
    }
    assert len(results) > 8


def test_finished_work_is_not_repeated_unless_something_changed(place, capfd):
    assert train() == 0
    assert test() == 0
    before = Path("run/test/mine/detections.json").stat().st_mtime_ns
    capfd.readouterr()
    assert train() == 0
    assert test() == 0
    assert "complete already" in capfd.readouterr().err
    assert Path("run/test/mine/detections.json").stat().st_mtime_ns == before
    assert test("--tta", "none") == 0
    assert Path("run/test/mine/detections.json").stat().st_mtime_ns > before


def test_interrupted_test_goes_on(place, monkeypatch, capfd):
    assert train() == 0
    assert test() == 0
    whole = Path("run/test/mine/detections.json").read_bytes()
    Path("run/test/mine/detections.json").unlink()

    from lib.engine.inference import Detector

    scored = []
    original = Detector.__call__

    def interrupted(self, read, passes):
        if len(scored) == 3:
            scored.append("stop")
            raise KeyboardInterrupt
        scored.append(read.record.image_id)
        return original(self, read, passes)

    monkeypatch.setattr(Detector, "__call__", interrupted)
    assert test("--threads", "1") == 130
    journal = Path("run/test/mine/detections.journal.jsonl")
    with journal.open("ab") as file:
        file.write(b'{"image_id": 103, "resu')
    assert not Path("run/test/mine/detections.json").exists()
    assert test("--threads", "1") == 0
    assert "resuming after 3 images" in capfd.readouterr().err
    assert scored == [100, 101, 102, "stop", 103, 104]
    assert Path("run/test/mine/detections.json").read_bytes() == whole
    assert not journal.exists()


def test_threads_change_nothing_but_rounding(place):
    assert train("--threads", "1", output="a") == 0
    assert train("--threads", "2", output="b") == 0
    a, b = weights_at("a", 4), weights_at("b", 4)
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    assert test("--threads", "1", run="a") == 0
    one = Path("a/test/mine/detections.json").read_text()
    assert test("--threads", "3", "--output", "three.json", run="a") == 0
    assert Path("three.json").read_text() == one


def test_resumed_training_is_bit_identical(place):
    assert train(output="whole") == 0

    command = [sys.executable, str(TOOLS / "train_net.py"), "--cfg", "small.yaml"]
    process = subprocess.Popen(
        [*command, *DATA, "--output", "halves", "--set", "run.checkpoint_period", "1"]
        + ["input.num_workers", "1"],
        start_new_session=True,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOOLS.parent)},
    )
    deadline = time.monotonic() + 300
    while not list(Path("halves").glob("ckpt/*.pth")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    told = process.communicate(timeout=300)[1].decode()
    assert process.returncode in (143, 0), told
    if process.returncode == 143:
        assert "stopped by SIGTERM" in told
    assert train(output="halves") == 0
    assert_same(weights_at("whole", 4), weights_at("halves", 4))


def test_interrupted_training_goes_on_by_itself(place, monkeypatch, capfd):
    assert train(output="whole") == 0
    from lib.engine.trainer import Trainer

    original = Trainer.update

    def with_signal(self, samples):
        values = original(self, samples)
        if self.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return values

    monkeypatch.setattr(Trainer, "update", with_signal)
    assert train() == 130
    assert "stopped by SIGINT; resume with --output run" in capfd.readouterr().err
    monkeypatch.setattr(Trainer, "update", original)
    assert train("--resume") == 0
    assert "resuming after 3 updates" in capfd.readouterr().err
    assert_same(weights_at("whole", 4), weights_at("run", 4))
    assert [e["iteration"] for e in read_lines(Path("run/history.jsonl"))] == [1, 2, 3, 4]


def test_other_seed_other_weights(place):
    assert train(output="a") == 0
    assert train("--set", "run.seed", "4", output="b") == 0
    a, b = weights_at("a", 4), weights_at("b", 4)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_workers_change_nothing(place):
    assert train(output="a") == 0
    assert train("--set", "input.num_workers", "2", output="b") == 0
    assert_same(weights_at("a", 4), weights_at("b", 4))


def test_start_from_a_whole_network(place):
    assert train(output="a") == 0
    options = ["--weights", "a/ckpt/model_step4.pth", "--set", "solver.base_lr", "1e-30"]
    assert train(*options, output="b") == 0
    a, b = weights_at("a", 4), weights_at("b", 4)
    assert all(torch.allclose(a[name], b[name]) for name in a)


def error_of(capfd):
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    return told


def test_other_settings_are_refused(place, capfd):
    assert train() == 0
    assert train("--set", "solver.max_iter", "9") == 2
    assert "solver.max_iter was 4, is 9; name another --output" in error_of(capfd)
    assert train("--resume", output="nothing") == 2
    assert "--resume: nothing has no checkpoint to resume from" in error_of(capfd)


def test_unknown_key_names_the_nearest(place, capfd):
    assert train("--set", "solver.base_lrr", "1") == 2
    assert "unknown key solver.base_lrr; did you mean solver.base_lr?" in error_of(capfd)
    assert not Path("run").exists()


def test_wrong_number_of_classes_in_a_checkpoint(place, capfd):
    assert train() == 0
    write_json_file(range(4), categories=((7, "cat"), (9, "dog"), (11, "cow")))
    assert test() == 2
    assert "run/ckpt/model_step4.pth: the checkpoint has 2 classes, the data set has 3" in error_of(
        capfd
    )
    assert train("--weights", "run/ckpt/model_step4.pth", output="other") == 2
    assert "the checkpoint has 2 classes, the data set has 3" in error_of(capfd)


def test_other_class_names_are_said(place, capfd):
    assert train() == 0
    write_json_file(range(4), categories=((7, "cat"), (9, "wolf")))
    assert test() == 0
    assert "calls a class dog, the data set calls it wolf" in capfd.readouterr().err


def test_checkpoint_of_another_network(place, capfd):
    assert train() == 0
    assert test("--set", "model.hidden_dim", "16") == 2
    told = error_of(capfd)
    assert "model_step4.pth does not fit the model" in told and "wrongly shaped" in told


def test_missing_pieces_are_found_before_training(place, capfd):
    ProposalStore("data/proposals/mine").path("b.png").unlink()
    assert train() == 2
    assert "proposals of 1 of 4 images are missing: b.png; make them with" in error_of(capfd)
    Path("data/clusters/mine/c.npz").unlink()
    ProposalStore("data/proposals/mine").save("b.png", encode(masks()))
    assert train() == 2
    assert "clusters of 1 of 4 images are missing: c.png" in error_of(capfd)
    Path("images/d.png").unlink()
    assert train() == 2
    assert "d.png" in error_of(capfd)
    assert not Path("run").exists()


def test_without_clusters_where_their_loss_is_off(place):
    for path in Path("data/clusters/mine").rglob("*.npz"):
        path.unlink()
    assert train("--set", "loss.pcl", "0") == 0


def test_no_image_has_a_label(place, capfd):
    write_json_file(())
    assert train() == 2
    assert "none of its 5 images has an image-level label" in error_of(capfd)


def test_damaged_image_names_itself(place, capfd):
    path = Path("images/b.png")
    path.write_bytes(path.read_bytes()[:500])
    assert train() == 2
    assert "b.png: the image is truncated" in error_of(capfd)
    assert "b.png: the image is truncated" in Path("run/log.txt").read_text()


def test_non_finite_loss(place, capfd):
    assert train("--set", "solver.max_iter", "2") == 0
    state = load_checkpoint("run/ckpt/model_step2.pth")
    state["model"]["cls_iou_model.classifier.bias"].fill_(float("nan"))
    save_checkpoint(Path("broken"), state)
    options = ["--weights", "broken/model_step2.pth"]
    assert train(*options, output="other") == 1
    told = error_of(capfd)
    assert "update 1, image " in told and "bag nan" in told
    assert not list(Path("other").glob("ckpt/*"))


def test_no_run_and_no_such_checkpoint(place, capfd):
    assert tool("test_net")([*DATA]) == 2
    assert "no run with a checkpoint" in error_of(capfd)
    assert test(run="nowhere") == 2
    assert "nowhere: no such run folder" in error_of(capfd)
    assert train() == 0
    assert test("--step", "3") == 2
    assert "there are: model_step2.pth, model_step4.pth" in error_of(capfd)
    assert test("--step", "2") == 0


def test_defaults_find_the_newest_run(place):
    command = ["--cfg", "small.yaml", *DATA, "--set", "solver.max_iter", "1"]
    assert tool("train_net")(command) == 0
    (run,) = Path("Outputs/small").iterdir()
    assert yaml.safe_load((run / "config.yaml").read_text())["solver"]["max_iter"] == 1
    assert tool("test_net")(DATA) == 0
    assert (run / "test" / "mine" / "detections.json").is_file()
    assert tool("train_net")([*command, "--resume"]) == 0
    assert list(Path("Outputs/small").iterdir()) == [run]
    assert tool("train_net")(command) == 0
    assert len(list(Path("Outputs/small").iterdir())) == 2


def test_published_checkpoint_by_itself(place):
    assert train() == 0
    state = {f"module.{name}": value for name, value in weights_at("run", 4).items()}
    published = {"step": 7, "train_size": 1, "batch_size": 4, "model": state, "optimizer": {}}
    torch.save(published, "published.pth")
    options = ["--weights", "published.pth", "--cfg", "small.yaml", "--output", "out.json"]
    assert tool("test_net")([*DATA, *options]) == 0
    assert test() == 0
    assert json.loads(Path("out.json").read_text()) == json.loads(
        Path("run/test/mine/detections.json").read_text()
    )
