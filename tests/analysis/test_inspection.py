"""The steps of the method on one image are those that training and testing take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.analysis.inspection import inspect, open_inspector, read_picture
from lib.config import load_config, save_config
from lib.data.coco import CocoImages
from lib.data.loader import CimDataset, no_clusters
from lib.engine.checkpoint import save_checkpoint
from lib.modeling.heads import teachers
from lib.modeling.model_builder import build_model
from lib.prm.assign import prm_peaks
from lib.prm.clusters import ClusterStore, agpl_clusters
from lib.prm.network import build_prm
from lib.proposals.overlaps import overlaps
from lib.proposals.store import ProposalStore
from tests.small_training import DATA, make_place, tool

PRM = [
    "prm.backbone",
    "resnet18",
    "prm.backbone_args",
    "${model.backbone_args}",
    "prm.image_size",
    "32",
]


def make_run(*overrides, with_prm=True, **extra):
    """A run folder with networks of random weights, as if trained on the data set `mine`."""
    torch.manual_seed(0)
    config = load_config("small.yaml", [*PRM, "prm.peak_thresh_relative", "0.5", *overrides])
    Path("run").mkdir(exist_ok=True)
    save_config(config, "run/config.yaml")
    model = build_model(config.model, 2)
    with torch.no_grad():
        for parameter in model.cls_iou_model.parameters():
            parameter.mul_(30)  # scores that differ
    content = {
        "model": model.state_dict(),
        "step": 4,
        "class_names": ["cat", "dog"],
        "dataset": "mine",
        **extra,
    }
    save_checkpoint(Path("run/ckpt"), content)
    if with_prm:
        Path("data/prm").mkdir(exist_ok=True)
        torch.save({"model": build_prm(config.prm, 2, "random").state_dict()}, "data/prm/mine.pth")
    return config


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_place()
    return tmp_path


def data():
    return CimDataset(
        CocoImages("mine.json"),
        "images",
        ProposalStore("data/proposals/mine"),
        ClusterStore("data/clusters/mine"),
    )


def same(a, b):
    assert np.array_equal(a.number, b.number) and np.array_equal(a.column, b.column)


def test_peaks_and_clusters_are_those_of_the_tools(place):
    config = make_run()
    inspector = open_inspector(Path("run"), Path("data"))
    read = data().read(1)
    seen = inspector(read, with_peak_maps=True)
    assert inspector.prm.settings == config.prm
    (peaks,) = prm_peaks(inspector.prm, [read.record], "images")
    assert len(seen.peaks) > 0
    for name in ("class_idx", "y", "x"):
        np.testing.assert_array_equal(getattr(seen.peaks, name), getattr(peaks, name))
    assert set(seen.peaks.class_idx.tolist()) == {1}  # the image has a dog
    same(seen.clusters, agpl_clusters(read.proposals.regions, peaks))
    assert seen.responses.shape[0] == 2
    assert seen.peak_maps.shape == (len(peaks), 32, 32)
    assert seen.peak_maps.min() >= 0 and seen.peak_maps.max() <= 1
    assert seen.detections is None  # not asked for


def test_instances_are_those_of_the_miner(place):
    config = make_run()
    inspector = open_inspector(Path("run"), Path("data"), CocoImages("mine.json"))
    read = data().read(0)
    seen = inspector(read)
    sample = CimDataset.view(read, 64)  # of 48 and 64
    with torch.no_grad():
        scores = inspector.detector.model(sample.image[None], sample.boxes, sample.roi_masks)
    mined = config.mining.mine(
        *teachers(scores), torch.tensor([0]), *overlaps(sample.membership, sample.areas)
    )
    assert (seen.instances.class_idx >= 0).any(dim=1).all()
    assert torch.equal(seen.instances.class_idx, mined.class_idx)
    assert torch.equal(seen.instances.weight, mined.weight)


def test_detections_are_those_of_test_net(place):
    make_run()
    assert tool("test_net")(["--run", "run", *DATA]) == 0
    results = json.loads(Path("run/test/mine/detections.json").read_text())
    expected = [r for r in results if r["image_id"] == 102]
    inspector = open_inspector(Path("run"), Path("data"))
    seen = inspector(data().read(2), with_detections=True)
    assert len(expected) > 2
    np.testing.assert_allclose(
        seen.detections.scores, [r["score"] for r in expected], rtol=1e-4, atol=1e-7
    )
    assert seen.detections.class_idx.tolist() == [[7, 9].index(r["category_id"]) for r in expected]


def test_what_there_is_no_network_for_is_left_out(place):
    make_run("model.num_stages", "0", with_prm=False)
    read = data().read(0)
    seen = open_inspector(Path("run"), Path("data"))(read)
    assert seen.responses is None and seen.peaks is None and seen.instances is None
    same(seen.clusters, read.clusters)  # the stored ones
    same(inspect(read, None).clusters, read.clusters)
    without = replace(read, clusters=no_clusters(len(read.proposals)))
    assert inspect(without, None).clusters is None


def test_any_picture(place):
    make_run("proposals.options", "{min_area: 20}", "proposals.max_proposals", "30")
    inspector = open_inspector(Path("run"), Path("data"))
    read = read_picture(Path("images/e.png"), ["dog"], inspector)
    assert 0 < len(read.proposals) <= 30
    assert read.record.image_labels.tolist() == [0, 1]
    assert inspector(read, with_detections=True).instances is not None
    with pytest.raises(ValueError, match="does not know bird; it knows cat, dog"):
        read_picture(Path("images/e.png"), ["dog", "bird"], inspector)


def test_a_checkpoint_without_names_needs_a_data_set(place):
    make_run(class_names=[])
    with pytest.raises(ValueError, match="model_step4.pth: does not name its classes"):
        open_inspector(Path("run"), Path("data"))
    open_inspector(Path("run"), Path("data"), CocoImages("mine.json"))


def test_a_prm_that_is_named_must_be_there(place):
    make_run()
    with pytest.raises(FileNotFoundError, match=r"other.pth: no trained PRM"):
        open_inspector(Path("run"), Path("data"), prm_file=Path("other.pth"))
