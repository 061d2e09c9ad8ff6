"""Settings that follow from the images, and warnings about the labels."""

from pathlib import Path

import pytest

from lib.config import load_config
from lib.data.coco import CocoImages
from lib.data.shapes import make_shapes
from lib.pipeline.label_my_images import scaled_to, warn_of_few

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
