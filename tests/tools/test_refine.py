"""tools/refine.py train and tools/refine.py test on a small data set made by hand."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib.engine.checkpoint import load_checkpoint, save_checkpoint
from lib.engine.runs import newest_run, read_lines
from lib.modeling.backbones import build_backbone
from lib.proposals import rle
from lib.provenance import file_fingerprint
from lib.refine.mask_rcnn import SECOND_STAGE
from tests.processes import finished, launch, start, wait_for
from tests.small_training import DATA, tool
from tools import refine

SIZE = (40, 56)
NAMES = ["sub/a.png", "b.png", "c.png", "d.png"]
SETTINGS = """
model:
  backbone: resnet18
  backbone_args: {widths: [4, 4, 8, 8], depths: [1, 1, 1, 1], strides: [1, 2, 1, 1]}
refine:
  model:
    backbone: resnet18
    backbone_args: ${model.backbone_args}
    weights: cim
    fpn_channels: 8
    head_dim: 16
    mask_layers: 1
    anchor_scale: 4
    anchors_per_image: 32
    rois_per_image: 16
    rois_before_nms: 64
    rois_after_nms: 32
  solver: {base_lr: 0.01, max_iter: 4, steps: [3], warmup_iters: 2, images_per_update: 2}
  input: {train_scales: [48, 64], num_workers: 0, test_scale: 56}
  test: {score_thresh: 0.0, detections_per_image: 5}
run: {checkpoint_period: 2, log_period: 1}
"""


def mask(number):
    whole = np.zeros(SIZE, bool)
    whole[3 : 20 + number, 4 + 5 * number : 30 + 5 * number] = True
    return rle.mask_to_rle(whole)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Four images, three of them with pseudo labels, and a CIM run that these belong to."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("images/sub").mkdir(parents=True)
    for name in NAMES:
        cv2.imwrite(f"images/{name}", rng.integers(256, size=(*SIZE, 3), dtype=np.uint8))
    truth = {
        "images": [
            {"id": 100 + n, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for n, name in enumerate(NAMES)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": 100 + n, "category_id": (7, 9)[n % 2], "segmentation": mask(n)}
            for n in range(4)
        ],
    }
    Path("mine.json").write_text(json.dumps(truth))
    labels = [{**a, "score": 0.9 - 0.1 * n} for n, a in enumerate(truth["annotations"][:3])]
    run = Path("Outputs/small/one")
    (run / "pseudo_labels").mkdir(parents=True)
    (run / "pseudo_labels/mine.json").write_text(json.dumps({**truth, "annotations": labels}))
    torch.manual_seed(0)
    trunk = build_backbone(
        "resnet18",
        {"widths": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "strides": [1, 2, 1, 1]},
    )
    state = {f"Conv_Body.{name}": value for name, value in trunk.state_dict().items()}
    save_checkpoint(run / "ckpt", {"model": state, "step": 3})
    (run / "config.yaml").write_text(SETTINGS)
    return run


def train(*options):
    return tool("refine train")([*DATA, *options])


def test(*options):
    return tool("refine test")([*DATA, *options])


test.__test__ = False


def weights_at(folder, step):
    return load_checkpoint(Path(folder) / "ckpt" / f"model_step{step}.pth")["model"]


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def error_of(capfd):
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_from_pseudo_labels_to_average_precision(place, capfd):
    labels = place / "pseudo_labels/mine.json"
    seen = {"masks_seen": ["sam was trained with masks"]}
    labels.write_text(json.dumps({**json.loads(labels.read_text()), "info": seen}))
    assert train() == 0
    told = capfd.readouterr().err
    assert "3 pseudo labels on 3 images" in told
    assert "leaves out 1 of 4 images, which have no pseudo label" in told
    run = place / "mask_rcnn"
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
    assert {"objectness", "classifier", "mask", "total", "lr"} <= history[0].keys()
    state = load_checkpoint(run / "ckpt" / "model_step4.pth")
    assert (state["step"], state["train_size"], state["batch_size"]) == (4, 3, 2)
    assert state["class_names"] == ["cat", "dog"]
    # The run within a run is not taken for a CIM run.
    assert newest_run(Path("Outputs")) == place

    assert test() == 0
    results = json.loads((run / "test/mine/detections.json").read_text())
    assert {r["image_id"] for r in results} == {100, 101, 102, 103}
    assert {r["category_id"] for r in results} <= {7, 9}
    record = json.loads((run / "test/mine/detections.made_from.json").read_text())
    assert record["made_from"].items() >= seen.items()
    for result in results:
        assert result["segmentation"]["size"] == list(SIZE)
        assert result["bbox"] == rle.tight_box(result["segmentation"])
    assert tool("evaluate")(["--run", str(run), *DATA]) == 0
    assert json.loads((run / "test/mine/metrics.json").read_text())["num_objects"] == 4
    visualize = tool("look pictures")
    assert visualize(["--run", str(run), *DATA, "--score-thresh", "0", "--limit", "1"]) == 0
    assert (run / "visual/mine/sub/a.png").is_file()
    capfd.readouterr()
    assert test() == 0
    assert "complete already" in capfd.readouterr().err


def test_going_on_is_bit_identical(place):
    assert train("--output", "whole") == 0
    assert train("--output", "parts") == 0
    Path("parts/ckpt/model_step4.pth").unlink()
    assert train("--output", "parts", "--threads", "1") == 0
    assert_same(weights_at("whole", 4), weights_at("parts", 4))
    for a, b in zip(
        read_lines(Path("whole/history.jsonl")),
        read_lines(Path("parts/history.jsonl")),
        strict=True,
    ):
        assert a["total"] == b["total"]


def test_a_signal_saves_and_the_same_command_goes_on(place):
    settings = ["refine.solver.max_iter", "20", "run.checkpoint_period", "100"]
    options = ["--threads", "1", "--output", "parts", "--set", *settings]
    process = start("refine train", *DATA, *options)
    wait_for(process, lambda: len(read_lines(Path("parts/history.jsonl"))) >= 3)
    process.send_signal(signal.SIGTERM)
    told = finished(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; resume with --output parts and the same options" in told
    assert train(*options) == 0
    assert train("--output", "whole", "--threads", "1", "--set", *settings) == 0
    assert_same(weights_at("whole", 20), weights_at("parts", 20))


def test_two_processes_train_and_test_as_one(place):
    options = ["--set", "refine.solver.images_per_update", "4", "refine.solver.max_iter", "8"]
    assert train("--output", "one", "--threads", "1", *options) == 0
    told = launch("refine train", *DATA, "--output", "two", *options)
    assert "8 updates of 4 images" in told and "on 2 x cpu" in told
    assert told.count("trained: two") == 1  # by the first process alone
    torch.testing.assert_close(weights_at("two", 8), weights_at("one", 8), rtol=1e-4, atol=1e-5)
    ones, twos = (read_lines(Path(run, "history.jsonl")) for run in ("one", "two"))
    for one, two in zip(ones, twos, strict=True):
        for name in ("total", "mask", "objectness", "lr", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name

    # What two have begun, one can finish.
    Path("two/ckpt/model_step8.pth").unlink()
    assert train("--output", "two", "--threads", "1", *options) == 0
    torch.testing.assert_close(weights_at("two", 8), weights_at("one", 8), rtol=1e-4, atol=1e-5)

    assert test("--run", "one", "--output", "one.json", "--threads", "1") == 0
    launch("refine test", *DATA, "--run", "one")
    assert Path("one/test/mine/detections.json").read_bytes() == Path("one.json").read_bytes()
    assert len(list(Path("one/test/mine").iterdir())) == 2  # no journal is left


def test_other_pseudo_labels_are_another_training(place, capfd):
    assert train() == 0
    path = place / "pseudo_labels/mine.json"
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    assert train() == 2
    assert "begun with other settings or data: data.pseudo_labels" in error_of(capfd)


def test_ground_truth_is_not_trained_on(place, capfd):
    assert train("--pseudo-labels", "mine.json") == 2
    assert "annotated masks are never trained on" in error_of(capfd)


NO_BOXES = replace(SECOND_STAGE, boxes=False)


def test_corrected_labels_are_trained_on_and_told(place, capfd, monkeypatch):
    """Of one image with a box, and of the one that has no pseudo label, which is empty."""
    corrected = json.loads(Path("mine.json").read_text())
    corrected["images"] = [corrected["images"][n] for n in (1, 3)]
    box = {"image_id": 101, "category_id": 9, "bbox": [5, 6, 20, 20]}
    Path("corrected.json").write_text(json.dumps({**corrected, "annotations": [box]}))
    assert train("--corrected", "corrected.json") == 0
    told = capfd.readouterr().err
    assert "corrected.json: 2 of 4 images are corrected and count as complete, with 1 obj" in told
    assert "2 further images have pseudo labels" in told
    assert "3 labels on 4 images" in told
    fingerprint = file_fingerprint(Path("corrected.json"))
    state = load_checkpoint(place / "mask_rcnn/ckpt/model_step4.pth")
    assert state["made_from"]["data"]["corrected"] == fingerprint
    assert test() == 0
    record = json.loads((place / "mask_rcnn/test/mine/detections.made_from.json").read_text())
    assert record["made_from"]["masks_seen"] == ["corrected.json was corrected by a person"]
    capfd.readouterr()
    assert train() == 2
    assert "data.corrected changed" in error_of(capfd)
    monkeypatch.setattr(refine, "second_stage", lambda name: NO_BOXES)
    assert train("--corrected", "corrected.json", "--output", "other") == 2
    assert "corrected.json: 1 annotations are boxes without a mask" in error_of(capfd)
    assert train("--corrected", "missing.json") == 2
    assert "missing.json: no such file" in error_of(capfd)


def test_what_is_missing_is_said(place, capfd):
    (place / "pseudo_labels/mine.json").rename("moved.json")
    assert train() == 2
    assert "make them with scripts/generate_msrcnn_label.sh" in error_of(capfd)
    assert train("--pseudo-labels", "moved.json", "--set", "refine.modle.weights", "random") == 2
    assert "unknown key refine.modle; did you mean refine.model?" in error_of(capfd)
    assert test() == 2
    assert "mask_rcnn/ckpt: no checkpoint" in error_of(capfd)
    assert test("--run", str(place)) == 2
    assert "a CIM network; take tools/test_net.py" in error_of(capfd)


def test_non_finite_loss(place, capfd):
    assert train("--set", "refine.solver.base_lr", "1e30", "refine.solver.warmup_iters", "0") == 1
    told = error_of(capfd)
    assert "is not finite" in told or "is not" in told
    assert "update " in told


MASK2FORMER = """
refine:
  model:
    network: mask2former
    network_args: {width: 64, queries: 5, encoder_layers: 1, decoder_layers: 2, points: 64}
  test: {mask_thresh: 0.2}
"""


def as_mask2former(place):
    pytest.importorskip("transformers", reason="needs the extra `transformers`")
    Path("mask2former.yaml").write_text(f"_BASE_: {place}/config.yaml\n{MASK2FORMER}")
    return ["--cfg", "mask2former.yaml"]


def test_mask2former_from_pseudo_labels_to_average_precision(place, capfd):
    options = as_mask2former(place)
    assert train(*options) == 0
    run = place / "mask2former"
    history = read_lines(run / "history.jsonl")
    assert [entry["iteration"] for entry in history] == [1, 2, 3, 4]
    assert {"cross_entropy", "mask", "dice", "total", "lr"} <= history[0].keys()
    assert test("--run", str(run)) == 0
    results = json.loads((run / "test/mine/detections.json").read_text())
    assert {r["image_id"] for r in results} == {100, 101, 102, 103}
    for result in results:
        assert result["category_id"] in (7, 9) and 0 < result["score"] < 1
        assert result["segmentation"]["size"] == list(SIZE)
        assert result["bbox"] == rle.tight_box(result["segmentation"])
    assert tool("evaluate")(["--run", str(run), *DATA]) == 0
    # Without --run, the newest run's network of that name.
    assert test(*options) == 0
    assert "complete already" in capfd.readouterr().err

    # Resumed, bit for bit, and with images side by side.
    (run / "ckpt/model_step4.pth").rename("whole.pth")
    assert train(*options, "--threads", "1") == 0
    assert_same(load_checkpoint("whole.pth")["model"], weights_at(run, 4))


def test_two_processes_train_mask2former_as_one(place):
    options = [*as_mask2former(place), "--set", "refine.solver.max_iter", "3"]
    assert train("--output", "one", "--threads", "1", *options) == 0
    launch("refine train", *DATA, "--output", "two", *options)
    torch.testing.assert_close(weights_at("two", 3), weights_at("one", 3), rtol=1e-3, atol=1e-4)


def test_a_missing_package_is_said_before_anything_is_done(place, capfd, monkeypatch):
    options = as_mask2former(place)
    monkeypatch.setattr("lib.refine.second_stage.find_spec", lambda name: None)
    assert train(*options) == 2
    assert "refine.model.network is mask2former, which needs the package transformers: " in (
        told := error_of(capfd)
    )
    assert "`pip install -e .[transformers]`" in told
    assert train("--set", "refine.model.network", "mask3former") == 2
    assert "no network 'mask3former'; did you mean mask2former?" in error_of(capfd)
