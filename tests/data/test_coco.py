import copy
import json
import re

import numpy as np
import pytest

from lib.data.coco import CocoImages

CONTENT = {
    "images": [
        {"id": 70, "file_name": "a.jpg", "height": 4, "width": 6},
        {"id": 3, "file_name": "sub/a.jpg", "height": 5, "width": 5},
        {"id": 2007000032, "file_name": "c.png", "height": 1, "width": 2},
        {"id": 5, "file_name": "d.png", "height": 2, "width": 2},
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "eel"}],
    "annotations": [
        {"id": 1, "image_id": 70, "category_id": 90},
        {"id": 2, "image_id": 70, "category_id": 90, "iscrowd": 0, "bbox": [0, 0, 1, 1]},
        {"id": 3, "image_id": 3, "category_id": 7, "iscrowd": 0},
        {"id": 4, "image_id": 3, "category_id": 90, "iscrowd": 1},
        {"id": 5, "image_id": 3, "category_id": 8},
        {"id": 6, "image_id": 2007000032, "category_id": 8, "iscrowd": 1},
    ],
}


def write(folder, content):
    path = folder / "set.json"
    path.write_text(json.dumps(content))
    return path


def test_hand_table(tmp_path):
    coco = CocoImages(write(tmp_path, CONTENT))
    assert coco.category_ids == [7, 8, 90]
    assert coco.class_names == ["dog", "eel", "cat"]
    assert coco.num_classes == 3
    assert len(coco) == 4
    assert [i.image_id for i in coco.images] == [70, 3, 2007000032, 5]
    assert [i.file_name for i in coco.images] == ["a.jpg", "sub/a.jpg", "c.png", "d.png"]
    assert [i.size for i in coco.images] == [(4, 6), (5, 5), (1, 2), (2, 2)]
    labels = np.stack([i.image_labels for i in coco.images])
    assert labels.dtype == np.float32
    # Crowds give no label: image 3 has no cat, image 2007000032 nothing.
    assert labels.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert coco.without_labels == 2


def test_nothing_but_labels_comes_out_of_annotations(tmp_path):
    content = copy.deepcopy(CONTENT)
    for annotation in content["annotations"]:
        annotation["segmentation"] = {"size": [1, 1], "counts": "SECRET"}
    assert "SECRET" not in repr(vars(CocoImages(write(tmp_path, content))))


def test_whole_numbers_may_be_written_as_floats(tmp_path):
    content = copy.deepcopy(CONTENT)
    content["images"][0]["height"] = 4.0
    content["images"][0]["id"] = 70.0
    image = CocoImages(write(tmp_path, content)).images[0]
    assert type(image.height) is int and type(image.image_id) is int
    assert image.image_labels.tolist() == [0, 0, 1]


def test_without_annotations(tmp_path):
    content = {key: CONTENT[key] for key in ("images", "categories")}
    path = write(tmp_path, content)
    assert CocoImages(path, require_annotations=False).without_labels == 4
    with pytest.raises(ValueError, match="no list 'annotations'"):
        CocoImages(path)
    assert CocoImages(write(tmp_path, {**content, "annotations": []})).without_labels == 4


def drop(where, number, key):
    return lambda c: c[where][number].pop(key)


def put(where, number, key, value):
    return lambda c: c[where][number].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "has no list 'images'"),
        (lambda c: c.pop("categories"), "has no list 'categories'"),
        (lambda c: c.pop("annotations"), "has no list 'annotations'"),
        (lambda c: c.__setitem__("images", {}), "has no list 'images'"),
        (lambda c: c.__setitem__("images", []), "'images' is empty"),
        (lambda c: c.__setitem__("categories", []), "'categories' is empty"),
        (lambda c: c["images"].append("e.jpg"), "images[4] is not an object but 'e.jpg'"),
        (drop("images", 1, "id"), "images[1] has no 'id'"),
        (drop("images", 1, "file_name"), "images[1] (id 3) has no 'file_name'"),
        (drop("images", 1, "height"), "images[1] (id 3) has no 'height'"),
        (drop("images", 1, "width"), "images[1] (id 3) has no 'width'"),
        (drop("categories", 2, "id"), "categories[2] has no 'id'"),
        (drop("categories", 2, "name"), "categories[2] (id 8) has no 'name'"),
        (put("annotations", 0, "id", []), "annotations[0] (id []) has id [], expected a whole"),
        (drop("annotations", 0, "image_id"), "annotations[0] (id 1) has no 'image_id'"),
        (drop("annotations", 0, "category_id"), "annotations[0] (id 1) has no 'category_id'"),
        (
            put("images", 0, "id", "x"),
            "annotations[0] (id 1) has image_id 70, which is not in the json",
        ),
        (put("images", 0, "id", ""), "images[0] (id ) has id '', expected a whole number or text"),
        (put("images", 0, "id", True), "has id True, expected a whole number"),
        (put("images", 0, "width", 1.5), "has width 1.5, expected a whole number"),
        (put("images", 0, "width", None), "has width None, expected a whole number"),
        (put("images", 0, "file_name", 3), "has file_name 3, expected text"),
        (put("images", 0, "height", 0), "has height 0 and width 6, expected at least 1"),
        (put("images", 0, "file_name", "/etc/a.jpg"), "expected a path inside the image folder"),
        (put("images", 0, "file_name", "../a.jpg"), "expected a path inside the image folder"),
        (put("images", 0, "file_name", ""), "has file_name '', expected text"),
        (put("images", 1, "id", 70), "images[0] and images[1] have the same id, 70"),
        (put("images", 3, "file_name", "c.png"), "images[2] and images[3] have the same file_name"),
        (put("images", 3, "file_name", "c.jpg"), "the same file_name without suffix, 'c'"),
        (put("categories", 0, "id", 7), "categories[0] and categories[1] have the same id, 7"),
        (put("categories", 0, "name", "dog"), "have the same name, 'dog'"),
        (put("annotations", 1, "id", 1), "annotations[0] and annotations[1] have the same id, 1"),
        (
            put("annotations", 2, "image_id", 9),
            "annotations[2] (id 3) has image_id 9, which is not in the json",
        ),
        (
            put("annotations", 2, "category_id", 1),
            "annotations[2] (id 3) has category_id 1, which is not in the json",
        ),
    ],
)
def test_faults_name_the_file_and_the_entry(tmp_path, change, message):
    content = copy.deepcopy(CONTENT)
    change(content)
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        CocoImages(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_not_an_object(tmp_path):
    with pytest.raises(ValueError, match="found a list, expected an object with 'images'"):
        CocoImages(write(tmp_path, []))


def test_missing_and_truncated_json(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file; docs/DATASET\.md says"):
        CocoImages(tmp_path / "none.json")
    path = write(tmp_path, CONTENT)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"set\.json: not valid JSON .* truncated"):
        CocoImages(path)


def test_check_files(tmp_path):
    coco = CocoImages(write(tmp_path, CONTENT))
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/a.jpg", "d.png"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"1 of the 4 images .*set\.json.* c\.png; is it"):
        coco.check_files(tmp_path)
    (tmp_path / "c.png").touch()
    coco.check_files(tmp_path)
