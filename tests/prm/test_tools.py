"""tools/prm.py train and tools/prm.py clusters on a small data set made by hand."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from joblib import parallel_config

from lib.prm.clusters import ClusterStore
from lib.proposals.regions import encode
from lib.proposals.store import ProposalStore
from tests.small_training import tool

SETTINGS = """
model: {backbone: resnet18, backbone_args: {widths: [8, 16], depths: [1, 1], strides: [1, 2]}}
prm:
  {backbone: resnet18, backbone_args: "${model.backbone_args}", weights: random, image_size: 32,
   epochs: 2, images_per_update: 2, base_lr: 0.05, backbone_lr_factor: 1.0,
   peak_thresh_relative: 0.5}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Four images in a folder with a sub-folder, the last one without a label; with proposals."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = ["sub/a.png", "b.png", "c.png", "d.png"]
    (tmp_path / "images/sub").mkdir(parents=True)
    masks = np.zeros((3, 40, 56), bool)
    masks[0, :20] = masks[1, :, :30] = masks[2] = True
    for name in names:
        cv2.imwrite(f"images/{name}", rng.integers(256, size=(40, 56, 3), dtype=np.uint8))
        ProposalStore("data/proposals/mine").save(name, encode(masks))
    content = {
        "images": [
            {"id": n, "file_name": name, "height": 40, "width": 56} for n, name in enumerate(names)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": n % 3, "category_id": (7, 9)[n % 2]} for n in range(4)
        ],
    }
    Path("mine.json").write_text(json.dumps(content))
    Path("mine.yaml").write_text(SETTINGS)
    return ["--json", "mine.json", "--images", "images", "--cfg", "mine.yaml", "--device", "cpu"]


def test_from_images_to_clusters(place, capsys):
    assert tool("prm train")(place) == 0
    assert "class mAP on the training labels (not held out): " in capsys.readouterr().out
    checkpoint = torch.load("data/prm/mine.pth", weights_only=True)
    assert checkpoint["class_names"] == ["cat", "dog"]
    assert checkpoint["config"]["prm"]["epochs"] == 2
    assert [p.name for p in Path("data/prm").iterdir()] == ["mine.pth"]

    assert tool("prm train")(place) == 0
    assert "finished before" in capsys.readouterr().out
    again = [*place, "--prm", "other/again.pth"]
    assert tool("prm train")(again) == 0
    for name, tensor in torch.load("other/again.pth", weights_only=True)["model"].items():
        assert torch.equal(tensor, checkpoint["model"][name]), name  # the seed decides
    other = [*place, "--set", "run.seed", "4", "prm.base_lr", "0.02"]
    assert tool("prm train")(other) == 2
    told = capsys.readouterr().err
    assert "run.seed was 3, is 4" in told
    assert "prm.base_lr was 0.05, is 0.02" in told and "--overwrite" in told
    assert tool("prm train")([*other, "--overwrite"]) == 0

    capsys.readouterr()
    assert tool("prm clusters")(place) == 0
    told = capsys.readouterr().out
    assert "3 images: " in told and "clusters an image" in told
    store = ClusterStore("data/clusters/mine")
    for name in ("sub/a.png", "b.png", "c.png"):
        clusters = store.load(name, 3)
        assert (clusters.number > 0).any()
    assert not store.has("d.png")  # it has no label


def test_only_clusters_that_are_out_of_date_are_made(place, capsys):
    assert tool("prm train")(place) == 0
    assert tool("prm clusters")(place) == 0
    store = ClusterStore("data/clusters/mine")
    times = {name: store.path(name).stat().st_mtime_ns for name in ("sub/a.png", "b.png", "c.png")}

    def remade():
        now = {name: store.path(name).stat().st_mtime_ns for name in times}
        changed = {name for name in now if now[name] != times[name]}
        times.update(now)
        return changed

    assert tool("prm clusters")(place) == 0
    assert remade() == set()
    ProposalStore("data/proposals/mine").save("b.png", encode(np.ones((1, 40, 56), bool)))
    store.path("c.png").write_bytes(b"damaged")
    remade()
    assert tool("prm clusters")(place) == 0
    assert remade() == {"b.png", "c.png"}
    assert len(store.load("b.png", 1).number) == 1
    assert tool("prm clusters")([*place, "--set", "prm.peak_thresh_relative", "0.9"]) == 0
    assert remade() == set(times)
    assert tool("prm clusters")([*place, "--overwrite"]) == 0
    assert remade() == set(times)


def test_imported_clusters_are_kept(place, capsys):
    """What the driver of the training runs where some or all clusters were imported."""
    names = ("sub/a.png", "b.png", "c.png")
    matrix = np.eye(3)[[1, 1, 1]]  # one cluster of class 0

    def imported(ids):
        content = {"indexes": ids, "mat": [matrix] * len(ids)}
        Path("label_assign.pkl").write_bytes(pickle.dumps(content))
        source = ["--source", "label_assign.pkl", "--jobs", "1"]
        return tool("prm import")([*source, *place[:4]])

    store = ClusterStore("data/clusters/mine")
    assert imported([0, 2]) == 1  # not for b.png
    assert tool("prm train")([*place, "--if-needed"]) == 0
    assert Path("data/prm/mine.pth").is_file()  # b.png needs it
    capsys.readouterr()
    assert tool("prm clusters")(place) == 0
    told = capsys.readouterr().out
    assert "the imported clusters of 2 images are kept" in told and "1 images: " in told
    assert [store.load(n, 3).number.tolist() == [1, 1, 1] for n in names] == [True, False, True]

    Path("data/prm/mine.pth").unlink()
    assert imported([2, 1, 0]) == 0
    capsys.readouterr()
    assert tool("prm train")([*place, "--if-needed"]) == 0
    assert "the clusters of all images were imported, none is needed" in capsys.readouterr().out
    assert tool("prm clusters")(place) == 0
    assert "the imported clusters of 3 images are kept" in capsys.readouterr().out
    assert not Path("data/prm").exists() or not any(Path("data/prm").iterdir())
    # CIM that starts from the PRM's trunk needs it all the same, and so does who asks for it.
    assert tool("prm train")([*place, "--if-needed", "--set", "model.weights", "prm"]) == 0
    assert Path("data/prm/mine.pth").is_file()
    assert tool("prm clusters")([*place, "--overwrite"]) == 0
    assert not any((store.load(n, 3).number == 1).all() for n in names)

    assert imported([0, 1, 2]) == 0
    ProposalStore("data/proposals/mine").save("b.png", encode(np.ones((3, 40, 56), bool)))
    for step in (["prm train", "--if-needed"], ["prm clusters"]):
        capsys.readouterr()
        assert tool(step[0])([*place, *step[1:]]) == 2
        told = capsys.readouterr().err
        assert "were imported for other proposals" in told and ": b.png; " in told


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_one_failing_image_does_not_stop_the_others(place, capsys, jobs):
    with parallel_config(backend="threading"):  # processes take long to start
        fail_for_two_images(place, capsys, jobs)


def fail_for_two_images(place, capsys, jobs):
    assert tool("prm train")(place) == 0
    Path("images/b.png").write_bytes(Path("images/b.png").read_bytes()[:-30])
    ProposalStore("data/proposals/mine").path("c.png").unlink()
    assert tool("prm clusters")([*place, "--jobs", jobs]) == 1
    told = capsys.readouterr().err
    assert "2 of 3 images failed" in told
    assert "b.png: images/b.png: the image is" in told
    assert "c.png: data/proposals/mine/c.npz: no proposals" in told
    store = ClusterStore("data/clusters/mine")
    assert [store.has(name) for name in ("sub/a.png", "b.png", "c.png")] == [True, False, False]


def test_points_take_the_place_of_peaks(place, capsys):
    Path("points/sub").mkdir(parents=True)
    Path("points/sub/a.txt").write_text("10 10 1 1.0\n50 30 0 1.0\n")
    Path("points/b.txt").write_text("")
    Path("points/c.txt").write_text("10 10 2 1.0\n")
    assert tool("prm clusters")([*place, "--points", "points"]) == 1
    assert "1 of 3 images failed" in (told := capsys.readouterr().err)
    assert "points/c.txt:1: class 2" in told
    Path("points/c.txt").write_text("10 10 1 1.0\n")
    assert tool("prm clusters")([*place, "--points", "points"]) == 0
    store = ClusterStore("data/clusters/mine")
    first = store.load("sub/a.png", 3)
    # Point 1 lies in all masks; their common part is 20x30: 600 of 1120 pixels are more than half
    # of mask 0, 600 of 1200 exactly half of mask 1. Point 2 lies in mask 2 alone, of which mask 0
    # is exactly half and mask 1 more.
    assert first.number.tolist() == [1, 2, 2]
    assert first.column.tolist() == [2, 1, 1]
    assert store.load("b.png", 3).number.tolist() == [0, 0, 0]


def test_bad_input_is_one_line(place, capsys):
    assert tool("prm clusters")(place) == 2
    assert "error: data/prm/mine.pth: no trained PRM" in capsys.readouterr().err
    assert tool("prm train")([*place, "--set", "prm.epoch", "3"]) == 2
    assert "did you mean prm.epochs?" in capsys.readouterr().err
    Path("images/c.png").unlink()
    assert tool("prm train")(place) == 2
    assert "c.png" in capsys.readouterr().err
    assert tool("prm train")(place[:2]) == 2
    Path("data/prm").mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"0.classifier.0.weight": torch.zeros(5, 1, 1, 1)}}, "data/prm/mine.pth")
    cv2.imwrite("images/c.png", np.zeros((40, 56, 3), np.uint8))
    assert tool("prm train")(place) == 2
    assert "a PRM of 5 classes, the data set has 2" in capsys.readouterr().err
    assert tool("prm clusters")(place) == 2
    assert "the PRM knows 5 classes, the data set has 2" in capsys.readouterr().err
    Path("data/prm/mine.pth").write_bytes(b"nothing")
    assert tool("prm train")(place) == 2
    assert "not a PRM checkpoint" in capsys.readouterr().err


def test_clusters_by_foreground(place, capsys):
    learned = [*place, "--set", "prm.clusters", "foreground"]
    assert tool("prm train")(learned) == 0
    assert tool("prm clusters")(learned) == 0
    assert "3 images: " in capsys.readouterr().out
    store, proposals = ClusterStore("data/clusters/mine"), ProposalStore("data/proposals/mine")
    before = {name: store.path(name).read_bytes() for name in ("sub/a.png", "b.png", "c.png")}
    for name in before:
        clusters = store.load(name, len(proposals.load(name)))
        assert (clusters.column > 0).any() and clusters.column.max() <= 2
    assert tool("prm clusters")(learned) == 0
    assert "images: " not in capsys.readouterr().out  # up to date
    # All images depend on the proposals of each: they are learned from.
    masks = np.zeros((2, 40, 56), bool)
    masks[0, :9] = masks[1] = True
    proposals.save("c.png", encode(masks))
    assert tool("prm clusters")(learned) == 0
    assert "3 images: " in capsys.readouterr().out
