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


POLYGON = [[3, 2, 13, 2, 13, 10, 3, 10]]  # the first of MASKS
CORRECTED = {
    # Other ids and names than the data set's, as annotation tools write them.
    "images": [
        {"id": "x", "file_name": "images/5/0a1b2c3d-b.png", "height": 20, "width": 30},
        {"id": 10, "file_name": "C:\\mine\\a.png", "height": 20, "width": 30},
    ],
    "categories": [
        {"id": 10, "name": "unused"},
        {"id": 1, "name": " Cat"},
        {"id": 2, "name": "dog"},
    ],
    "annotations": [
        {"id": 1, "image_id": "x", "category_id": 1, "segmentation": POLYGON, "score": 0.1},
        {"id": 1, "image_id": "x", "category_id": 2, "segmentation": [], "bbox": [5, 4.4, 6.2, 7]},
        {
            "image_id": "x",
            "category_id": 2,
            "segmentation": rle.uncompressed(rle.mask_to_rle(MASKS[1])),
            "iscrowd": 1,
        },
        {"image_id": "x", "category_id": 2, "segmentation": [[1, 1, 2, 2]], "bbox": [9, 9, 0, 0]},
    ],
}
CORRECTED["annotations"][1]["id"] = 2


def correct(made, **changes):
    (made / "corrected.json").write_text(json.dumps({**CORRECTED, **changes}))
    return open_pseudo_labels(made / "labels.json", made, corrected=made / "corrected.json")


def test_corrected_images_are_complete_and_the_others_have_pseudo_labels(made, caplog):
    """By name, whatever the ids: polygon, box and run lengths."""
    with caplog.at_level("INFO"):
        data = correct(made)
    assert data.labelled() == [0, 1, 2]
    empty, b, c = (data.load(n, 30) for n in range(3))
    assert (len(empty.boxes), empty.has_mask) == (0, None)  # its two pseudo labels are gone
    assert b.class_idx.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(b.masks[[0, 2]].numpy().astype(bool), MASKS[:2])
    assert b.has_mask.tolist() == [True, False, True]
    assert b.boxes[1].tolist() == [5, 4, 11, 11]
    assert (c.class_idx.tolist(), c.has_mask) == ([0], None)
    told = caplog.text
    assert (
        "2 of 3 images are corrected and count as complete, with 3 objects, 1 of them with" in told
    )
    assert "1 of these are without objects: a.png" in told
    assert "1 further images have pseudo labels" in told
    assert "1 annotations are marked iscrowd; each is an object here" in told
    assert "1 of 4 annotations have no usable mask" in told
    assert "every image" not in told
    mirrored = data.load(1, 60, "horizontal")
    assert mirrored.boxes[1].tolist() == [38, 8, 50, 22]
    assert mirrored.has_mask.tolist() == [True, False, True]


def test_an_object_too_small_for_the_scale_takes_its_flag_along(made):
    data = correct(made)
    data.instances[20][0]["segmentation"] = rle.mask_to_rle(mask(1, 1, 1, 1))
    assert data.load(1, 10).has_mask.tolist() == [False, True]


def test_a_file_of_all_images_is_told(made, caplog):
    images = [{"id": n, "file_name": f"{n}.png", "height": 20, "width": 30} for n in "abc"]
    data = correct(made, images=images, annotations=[])
    assert "it lists every image of the data set" in caplog.text
    assert data.labelled() == [0, 1, 2]
    assert [len(data.load(n, 30).boxes) for n in range(3)] == [0, 0, 0]


def changed(key, number, **fields):
    entries = [dict(entry) for entry in CORRECTED[key]]
    entries[number] |= fields
    return {key: entries}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (changed("categories", 1, name="wolf"), "does not have: wolf; it has cat, dog"),
        (changed("images", 0, file_name="d.png"), "1 of its 2 images are not in .*: d.png"),
        (changed("images", 0, file_name="sub/../a.png"), "meant by two names: "),
        (
            {**changed("images", 0, height=30, width=20), "annotations": []},
            "30x20 .* data set's is 20x30",
        ),
        (changed("annotations", 0, image_id="y"), "image_id 'y', which is not in the json"),
        (changed("annotations", 0, category_id=7), "category_id 7, which is not in the json"),
        (changed("annotations", 1, id=1), "have the same id, 1"),
        (
            changed("annotations", 2, segmentation={"size": [20, 30], "counts": [1, 2]}),
            "the runs cover 3 pixels",
        ),
        ({"annotations": [{"image_id": "x", "category_id": 1}]}, "none of the 1 annotations has"),
        ({"images": []}, "'images' is empty"),
    ],
)
def test_what_is_wrong_with_a_corrected_file_is_said(made, changes, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told) as error:
        correct(made, **changes)
    assert "corrected.json" in str(error.value)


ODD = [
    None,
    [],
    {},
    "",
    "x",
    0,
    -1,
    1e300,
    float("nan"),
    True,
    [[]],
    [1, 2, 3],
    [0, 0, -5, 5],
    "nan",
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("field", ["segmentation", "bbox", "iscrowd", "category_id"])
def test_odd_annotations_are_left_out_or_named(made, field, odd):
    entry = {"image_id": "x", "category_id": 2, "segmentation": [], "bbox": [0, 0, 9, 9]}
    annotations = [*CORRECTED["annotations"], {**entry, field: odd}]
    try:
        data = correct(made, annotations=annotations)
    except ValueError as error:
        assert "corrected.json" in str(error) and "annotations[4]" in str(error)
    else:
        assert 3 <= len(data.load(1, 30).boxes) <= 4
