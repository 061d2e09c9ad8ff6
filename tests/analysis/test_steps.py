"""lib/analysis/steps.py against counts by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.analysis.instance_quality import Truth
from lib.analysis.steps import cluster_quality, proposal_quality
from lib.proposals import rle
from lib.structures import Clusters
from tests.small_training import DATA, make_place, masks, tool


@pytest.fixture
def truth():
    """Five proposals; an object of class 0 and two of class 2."""
    iou = np.array([[0.9, 0, 0], [0.6, 0.1, 0], [0.5, 0, 0], [0, 0.55, 0.2], [0, 0, 0.3]])
    return Truth(np.array([0, 2, 2]), iou, np.zeros_like(iou), np.zeros_like(iou))


def test_proposals(truth):
    quality = proposal_quality(truth)
    assert quality["objects with a good proposal"].tolist() == [1, 1, 0]
    assert quality["objects with a tight proposal"].tolist() == [1, 0, 0]
    assert quality["IoU of the best proposal"].tolist() == [0.9, 0.55, 0.3]


def test_clusters(truth):
    number = np.array([1, 1, 1, 2, 3])
    quality = cluster_quality(truth, Clusters(number, np.array([1, 1, 1, 3, 0])))
    assert quality["clusters with a good member"].tolist() == [1, 1]  # the third is background
    assert quality["members that are good"].tolist() == [1, 1, 0, 1]  # 0.5 is not above 0.5
    assert quality["objects with a good member"].tolist() == [1, 1, 0]


def test_only_objects_of_the_class_count(truth):
    quality = cluster_quality(
        truth, Clusters(np.array([1, 1, 0, 0, 0]), np.array([3, 3, -1, -1, -1]))
    )
    assert quality["clusters with a good member"].tolist() == [0]
    assert quality["objects with a good member"].tolist() == [0, 0, 0]


def test_nothing_to_measure(truth):
    none = Clusters(np.zeros(5, int), np.full(5, -1))
    assert all(not values.any() for values in cluster_quality(truth, none).values())
    empty = Truth(np.zeros(0, int), np.zeros((5, 0)), np.zeros((5, 0)), np.zeros((5, 0)))
    assert proposal_quality(empty)["objects with a good proposal"].tolist() == []


def test_the_tool_measures_a_data_set_with_an_image_without_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_place()
    content = json.loads(Path("mine.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = rle.mask_to_rle(masks()[0])
    Path("mine.json").write_text(json.dumps(content))
    Path("data/prm").mkdir()
    content = {"model": {"weight": torch.ones(1)}, "train_class_map": 0.5}
    torch.save(content, "data/prm/mine.pth")
    assert tool("study steps")([*DATA, "--output", "steps.json"]) == 0
    measures = json.loads(Path("steps.json").read_text())
    assert measures["objects with a tight proposal"] == 1
    assert measures["IoU of the best proposal"] == 1
    assert measures["class mAP of the PRM (in training)"] == 0.5
    assert 0 < measures["clusters an image"] < 1  # the image without labels has none
    assert "50.0%" in capsys.readouterr().out
    Path("data/prm/mine.pth").write_bytes(b"broken")
    assert tool("study steps")(DATA) == 2
