import json

import cv2
import numpy as np
import pytest
import torch

from lib.data.loader import train_loader
from lib.proposals import rle
from lib.refine.data import open_pseudo_labels

SIZE = (20, 30)


def mask(top, left, height, width):
    whole = np.zeros(SIZE, bool)
    whole[top : top + height, left : left + width] = True
    return whole


MASKS = [mask(2, 3, 8, 10), mask(10, 15, 9, 12), mask(0, 0, 1, 1)]


@pytest.fixture
def made(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        cv2.imwrite(
            str(tmp_path / f"{name}.png"), rng.integers(256, size=(*SIZE, 3), dtype=np.uint8)
        )
    content = {
        "images": [
            {"id": 10 * n, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]}
            for n, name in enumerate("abc", 1)
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": category,
                "score": score,
                "segmentation": rle.mask_to_rle(MASKS[m]),
            }
            for n, (image, category, score, m) in enumerate(
                [(10, 9, 0.9, 0), (10, 4, 0.5, 1), (30, 4, 0.4, 1), (20, 4, 0.2, 0)], 1
            )
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    return tmp_path


def test_masks_boxes_and_classes(made):
    data = open_pseudo_labels(made / "labels.json", made)
    sample = data.load(0, 30)
    assert sample.image.shape == (3, *SIZE)
    assert sample.class_idx.tolist() == [1, 0]  # by ascending category id
    np.testing.assert_array_equal(sample.masks.numpy().astype(bool), MASKS[:2])
    assert sample.boxes.tolist() == [[3, 2, 13, 10], [15, 10, 27, 19]]
    assert (sample.boxes.dtype, sample.masks.dtype) == (torch.float32, torch.uint8)


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "both"])
def test_mirrored_and_scaled_masks_stay_on_the_image(made, flip):
    data = open_pseudo_labels(made / "labels.json", made)
    plain, mirrored = data.load(0, 60), data.load(0, 60, flip)
    axes = {"horizontal": (2,), "vertical": (1,), "both": (1, 2)}[flip]
    assert plain.masks.shape == (2, 40, 60)
    assert torch.equal(mirrored.masks, plain.masks.flip(axes))
    for sample in (plain, mirrored):
        for box, m in zip(sample.boxes.tolist(), sample.masks, strict=True):
            rows, columns = np.nonzero(m.numpy())
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_an_instance_too_small_for_the_scale_is_dropped(made):
    content = json.loads((made / "labels.json").read_text())
    content["annotations"][0]["segmentation"] = rle.mask_to_rle(mask(1, 1, 1, 1))
    (made / "labels.json").write_text(json.dumps(content))
    data = open_pseudo_labels(made / "labels.json", made)
    sample = data.load(0, 10)
    assert sample.class_idx.tolist() == [0]
    assert len(sample.boxes) == len(sample.masks) == 1


def test_images_without_a_label_are_left_out(made, caplog):
    content = json.loads((made / "labels.json").read_text())
    content["annotations"].pop()
    (made / "labels.json").write_text(json.dumps(content))
    data = open_pseudo_labels(made / "labels.json", made)
    assert data.labelled() == [0, 2]
    stream = train_loader(data, (30,), ("none",), seed=0)
    assert {next(stream).file_name for _ in range(8)} == {"a.png", "c.png"}
    assert "leaves out 1 of 3 images, which have no pseudo label" in caplog.text


def test_images_are_read_once_if_there_is_room(made):
    kept = open_pseudo_labels(made / "labels.json", made, memory_limit=10**6)
    again = open_pseudo_labels(made / "labels.json", made, memory_limit=100)
    assert kept.read(0) is kept.read(0)
    assert again.read(0) is not again.read(0)


def test_annotated_masks_are_refused(made):
    content = json.loads((made / "labels.json").read_text())
    del content["annotations"][1]["score"]
    (made / "labels.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"1 annotations have no score \(ids 2\).*never trained on"
    ):
        open_pseudo_labels(made / "labels.json", made)


def test_nothing_to_train_on_is_said(made):
    content = json.loads((made / "labels.json").read_text())
    (made / "none.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="none.json: it has no pseudo label; make them with"):
        open_pseudo_labels(made / "none.json", made)
    (made / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match="b.png"):
        open_pseudo_labels(made / "labels.json", made)
