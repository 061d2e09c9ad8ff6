"""An update that gives NaN is kept, and tools/study.py replay finds where it came up."""

from pathlib import Path

import pytest
import torch

from lib.analysis.replay import load_failed_update
from lib.engine.checkpoint import load_checkpoint, save_checkpoint
from lib.engine.training import FAILED_UPDATE
from tests.small_training import DATA, make_place, tool


@pytest.fixture
def failed(tmp_path, monkeypatch):
    """A way to train on weights that were changed; gives the kept update."""
    monkeypatch.chdir(tmp_path)
    make_place()
    train = ["--cfg", "small.yaml", *DATA]
    assert tool("train_net")([*train, "--output", "good"]) == 0

    def fail(name, value, *settings):
        state = load_checkpoint("good/ckpt/model_step4.pth")
        weight = state["model"][name]
        weight[(0,) * weight.dim()] = value
        save_checkpoint(Path("changed"), state)
        options = ["--weights", "changed/model_step4.pth", "--output", "bad"]
        assert tool("train_net")([*train, *options, "--set", *settings]) == 1
        return Path("bad") / FAILED_UPDATE

    return fail


def test_the_part_and_the_images_are_named(failed, capfd):
    path = failed("Box_Head.mask_branch.0.weight", float("inf"))
    told = capfd.readouterr().err
    assert f"the failed update is kept: python tools/study.py replay {path}" in told
    content = torch.load(path, weights_only=True)
    assert content["model"]["Box_Head.mask_branch.0.weight"].flatten()[0] == float("inf")
    assert len(content["samples"]) == 2

    assert tool("study replay")([str(path), "--device", "cpu"]) == 0
    told = capfd.readouterr().out
    assert "update 1, image " in told
    assert "The weights were not finite before: Box_Head.mask_branch.0.weight\n" in told
    assert told.count("first not finite: the input of Box_Head.mask_branch.1 (") == 2  # made by .0
    for sample in content["samples"]:
        assert sample["file_name"] in told
    assert "refine_cls" in told and "by stage nan nan" in told


def test_losses_come_out_as_they_were(failed, capfd):
    # A weight so large that the loss is just finite and the norm of its gradient is not.
    weights = ("loss.bag", "1e38", "loss.refine_integrity", "3")
    path = failed("cls_iou_model.classifier.bias", 0.0, *weights)
    capfd.readouterr()
    assert tool("study replay")([str(path), "--device", "cpu"]) == 0
    told = capfd.readouterr().out
    assert "the losses are finite but their gradient is not" in told
    assert "first not finite: nothing up to the losses" in told
    assert "on the way back:  nothing; norm inf" in told  # an overflow of its sum
    before = load_failed_update(path)["losses"]
    rows = [line.split() for line in told.splitlines() if line.startswith("  ")]
    for name in ("bag", "pcl", "refine_bag", "refine_cls", "refine_integrity"):
        values = [row for row in rows if row[0] == name]
        assert [float(row[1]) for row in values] == pytest.approx(
            [b[name] for b in before], rel=1e-4
        )
        assert [row[1] for row in values] == [row[2] for row in values]


def test_other_files_are_refused(failed, capfd):
    assert tool("study replay")(["good/ckpt/model_step4.pth"]) == 2
    assert "not the failed update of a CIM training" in capfd.readouterr().err
