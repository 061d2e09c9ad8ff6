"""Every step from images to masks is measured, on the images themselves."""

import itertools
from pathlib import Path

import pytest

from lib.config import load_config
from lib.data.catalog import catalog
from lib.data.coco import CocoImages
from lib.data.shapes import make_shapes
from lib.modeling.backbones import build_backbone
from lib.pipeline import estimate as estimating
from lib.pipeline.estimate import estimate_seconds
from tests.proposals.tiny_sam import save_tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("estimate")
    make_shapes(root, seed=1, num_images={"train": 5, "val": 1, "test": 1})
    dataset = catalog(root)["shapes_train"]
    return dataset, CocoImages(dataset.json)


def estimate(data, *overrides):
    config = load_config(
        ROOT / "configs/resnet18_shapes.yaml",
        ["prm.images_per_update", "4", "test.flips", "[none]", *overrides],
    )
    return estimate_seconds(config, *data, "cpu", threads=1, cores=2)


def test_more_work_takes_longer(data):
    few = estimate(data, "solver.max_iter", "10", "prm.epochs", "10")
    steps = ("proposals", "prm", "clusters", "train", "masks", "pseudo_labels", "gallery")
    assert tuple(few) == steps
    assert min(few.values()) > 0
    many = estimate(data, "solver.max_iter", "100000", "prm.epochs", "100000")
    assert many["train"] > 20 * few["train"]
    assert many["prm"] > 20 * few["prm"]


def test_a_generator_on_a_device_works_on_one_image_at_a_time(data, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    folder = save_tiny("sam", tmp_path / "sam")
    clock = itertools.count(step=100)  # every look at the clock is 100 s later
    monkeypatch.setattr(estimating, "_prm", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(estimating, "_cim", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: next(clock))
    by_trees = estimate(data)["proposals"]
    by_sam = estimate(data, "proposals.generator", "sam", "proposals.sam.model", str(folder))
    # 100 s to open it, and 100 s for 3 of 5 images, which two processes share that make trees
    images = 5 * 100 / 3
    assert by_trees == pytest.approx(estimating._START + 100 + images / 2)
    assert by_sam["proposals"] == pytest.approx(estimating._START + 100 + images)


@pytest.mark.parametrize(("device", "calls"), [("cpu", 1), ("cuda", 2)])
def test_a_first_call_on_a_gpu_which_loads_its_kernels_is_not_what_counts(
    monkeypatch, device, calls
):
    clock = iter([0.0, 9.0, 10.0, 12.5])
    monkeypatch.setattr(estimating.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(estimating.torch.cuda, "synchronize", lambda device: None)
    work = iter(range(9))
    assert estimating._seconds(lambda: next(work), device) == (9.0 if calls == 1 else 2.5)
    assert next(work) == calls


def test_features_that_are_kept_are_computed_once(monkeypatch):
    # 10 seconds where features are computed, 2 where they are kept.
    monkeypatch.setattr(estimating, "_seconds", lambda update, device: update())
    net = build_backbone("resnet18", {"widths": [4], "depths": [1], "strides": [1]}).train()

    def updating(uses, *overrides, device="cpu"):
        config = load_config(ROOT / "configs/resnet18_shapes.yaml", overrides)
        updates = lambda kept: lambda: 10.0 if kept is None else 2.0  # noqa: E731
        return estimating._updating(updates, config, net, uses, device)

    assert updating(4) == 10  # it trains
    net.requires_grad_(False)
    assert updating(4) == 2 + 8 / 4
    assert updating(1) == 10
    assert updating(4, "runtime.feature_cache_gb", "0") == 10


def test_weights_that_are_not_there_are_known_at_once(data):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        estimate(data, "prm.weights", "none.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        estimate(data, "model.weights", "none.pth")


def test_nothing_is_left_in_the_data_root(data):
    dataset, _ = data
    before = sorted(dataset.root.rglob("*"))
    estimate(data)
    assert sorted(dataset.root.rglob("*")) == before
