"""Settings that follow from the images, and warnings about the labels."""

from pathlib import Path

import numpy as np
import pytest

from lib.config import load_config
from lib.data.catalog import Dataset
from lib.data.coco import CocoImages
from lib.data.shapes import make_shapes
from lib.pipeline import label_my_images
from lib.pipeline.label_my_images import (
    preview_of,
    scaled_to,
    share_of_learning,
    shortened,
    some_images,
    warn_of_few,
)

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def coco(tmp_path):
    make_shapes(tmp_path, seed=3, num_images={"train": 12, "val": 1, "test": 1})
    return CocoImages(tmp_path / "shapes/annotations/train.json")


def test_the_number_of_updates_follows_the_images(coco):
    for cfg in ("custom", "photos", "custom_scratch"):
        config = load_config(CONFIGS / f"{cfg}.yaml")
        settings = scaled_to(coco, config, None)
        assert settings[:4] == ["solver.max_iter", "500", "solver.steps", "[333]"]
        assert load_config(CONFIGS / f"{cfg}.yaml", settings).prm.epochs == 300
    coco.images = coco.images * 100
    coco.without_labels = 0
    config = load_config(CONFIGS / "custom.yaml")
    assert scaled_to(coco, config, None)[:2] == ["solver.max_iter", "5100"]
    small = load_config(CONFIGS / "photos.yaml")
    assert scaled_to(coco, small, None)[:2] == ["solver.max_iter", "1000"]
    assert scaled_to(coco, small, 90)[:4] == ["solver.max_iter", "90", "solver.steps", "[60]"]
    with pytest.raises(ValueError, match="at least 1"):
        scaled_to(coco, config, 0)


def test_labels_that_tell_nothing_are_named(coco, caplog):
    for record in coco.images:
        record.image_labels[:] = 0
        record.image_labels[1] = 1
    warn_of_few(coco)
    assert (
        "there is only one class, so that nothing tells it from anything: amber (12)" in caplog.text
    )
    assert f"in no image: {coco.class_names[0]} (0)" in caplog.text
    assert "12 labelled images are few to learn 5 classes from" in caplog.text


def test_a_preview_takes_some_images_of_all_classes(coco, tmp_path, monkeypatch):
    monkeypatch.setattr(label_my_images, "PREVIEW_IMAGES", 6)
    whole = Dataset("mine", coco.path, tmp_path / "shapes/train", tmp_path / "data")
    few = some_images(whole, coco, tmp_path / "out")
    found = CocoImages(few.json)
    assert len(found) == 6
    assert found.class_names == coco.class_names
    seen = np.array([record.image_labels for record in found.images]).sum(axis=0)
    assert (seen > 0).all()
    labels = {record.file_name: record.image_labels for record in coco.images}
    for record in found.images:
        np.testing.assert_array_equal(record.image_labels, labels[record.file_name])
    # Nothing of it lies where the results of the whole do.
    assert few.images == whole.images
    for path in (few.json, few.root, few.proposals, few.clusters, few.prm):
        assert path.is_relative_to(tmp_path / "out")


def test_a_preview_learns_as_long_as_there_is_time(coco):
    config = load_config(CONFIGS / "photos.yaml")
    rest = {"proposals": 30.0, "clusters": 10.0, "masks": 40.0}
    slow = {**rest, "prm": 150.0, "train": 50.0}
    assert share_of_learning(slow) == 0.5
    assert sum(shortened(slow).values()) == 180
    assert share_of_learning({**rest, "prm": 30.0, "train": 50.0}) == 1
    assert share_of_learning({**slow, "masks": 500.0}) == 1 / 3
    nominal = preview_of(coco, config, None)
    quarter = preview_of(coco, config, None, 0.25)
    assert nominal[:4] == ["solver.max_iter", "300", "solver.steps", "[200]"]
    assert quarter[:4] == ["solver.max_iter", "75", "solver.steps", "[50]"]
    assert quarter[4:6] == ["solver.warmup_iters", "7"]
    assert (nominal[7], quarter[7]) == ("75", "19")  # epochs of 12 images, all in one batch
    assert load_config(CONFIGS / "photos.yaml", quarter).prm.epochs == 19
    assert preview_of(coco, config, 40)[1] == "40"
