import copy
import json
import re
import unicodedata

import cv2
import numpy as np
import pytest

from lib.data.coco import CocoImages, read_coco, warn_of_labels
from lib.data.images import read_image

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


def changed(**changes):
    """CONTENT with fields of single entries replaced: images_0={"id": "x"}."""
    content = copy.deepcopy(CONTENT)
    for where, fields in changes.items():
        key, number = where.rsplit("_", 1)
        content[key][int(number)] |= fields
    return content


@pytest.mark.parametrize(
    ("ids", "read", "original"),
    [
        ((70, 3), (70, 3), (None, None)),
        ((70.0, "3"), (70, 3), (None, None)),
        (("3.0", "70"), (3, 70), (None, None)),
        ((-1, 0), (-1, 0), (None, None)),
        (("img_a", "img_b"), (1, 2), ("img_a", "img_b")),
        (("007", 1), (2, 1), ("007", None)),  # a number that is taken is passed over
        ((2**63, 2**70), (1, 2), (2**63, 2**70)),
        ((2**63 - 1, 2**53 + 1), (2**63 - 1, 2**53 + 1), (None, None)),
    ],
)
def test_ids_of_any_kind(tmp_path, ids, read, original):
    content = copy.deepcopy(CONTENT)
    content["images"] = content["images"][:2]
    content["annotations"] = content["annotations"][:3]
    for image, id_ in zip(content["images"], ids, strict=True):
        image["id"] = id_
    for annotation, number in zip(content["annotations"], (0, 0, 1), strict=True):
        annotation["image_id"] = ids[number]
    path = write(tmp_path, content)
    coco = CocoImages(path)
    assert tuple(i.image_id for i in coco.images) == read
    assert tuple(i.original_id for i in coco.images) == original
    assert [i.image_labels.tolist() for i in coco.images] == [[0, 0, 1], [1, 0, 0]]
    assert coco.find([str(id_) for id_ in read]) == [0, 1]
    assert coco.find([id_ for id_ in original if isinstance(id_, str)]) == [
        number for number, id_ in enumerate(original) if isinstance(id_, str)
    ]
    again = read_coco(read_coco(path))  # nothing changes when it is read a second time
    assert again == read_coco(path)


def test_text_and_number_of_one_id_are_one(tmp_path):
    content = changed(annotations_0={"image_id": "70", "category_id": "90"})
    assert CocoImages(write(tmp_path, content)).images[0].image_labels.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"images\[0\] and images\[1\] have the same id, 70"):
        read_coco(write(tmp_path, changed(images_1={"id": "70"})))
    for odd in (None, True, [1], 1.5, float("nan"), ""):
        with pytest.raises(
            ValueError, match=r"images\[0\] \(id .* expected a whole number or text"
        ):
            read_coco(changed(images_0={"id": odd}))


def test_categories_of_text(tmp_path):
    content = copy.deepcopy(CONTENT)
    for category in content["categories"]:
        category["id"] = f"c{category['id']}"
    for annotation in content["annotations"]:
        annotation["category_id"] = f"c{annotation['category_id']}"
    coco = CocoImages(write(tmp_path, content))
    assert (coco.category_ids, coco.class_names) == ([1, 2, 3], ["cat", "dog", "eel"])


@pytest.mark.parametrize("crowd", [1, True, "1", "true", 1.0, "1.0"])
@pytest.mark.parametrize("single", [0, False, "0", "false", 0.0, None, float("nan"), ""])
def test_iscrowd(crowd, single):
    flags = {"annotations_0": {"iscrowd": crowd}, "annotations_1": {"iscrowd": single}}
    read = read_coco(changed(**flags))["annotations"]
    assert [a["iscrowd"] for a in read] == [1, 0, 0, 1, 0, 1]
    assert all(type(a["iscrowd"]) is int for a in read)


def test_iscrowd_of_other_kinds():
    for odd in (2, "yes", [], {}, 0.5):
        with pytest.raises(ValueError, match=r"annotations\[2\] \(id 3\) has iscrowd"):
            read_coco(changed(annotations_2={"iscrowd": odd}))


def test_what_nobody_reads_may_be_anything(tmp_path):
    nan = float("nan")
    odd = {"license": nan, "date_captured": None, "coco_url": [1, {"x": -nan}], "score": "high"}
    for info in (None, [], "by hand", nan):
        content = changed(images_0=odd, categories_0=odd, annotations_0={**odd, "area": "wide"})
        content |= {"info": info, "licenses": info}
        coco = CocoImages(write(tmp_path, content))
        assert coco.images[0].image_labels.tolist() == [0, 0, 1]
        json.dumps(read_coco(coco.path), allow_nan=False)


def test_sizes_as_floats_and_text(tmp_path):
    coco = CocoImages(write(tmp_path, changed(images_0={"height": 480.0, "width": "640"})))
    assert coco.images[0].size == (480, 640)
    with pytest.raises(ValueError, match=r"no 'height'; --labels takes such a json"):
        read_coco({**CONTENT, "images": [{"id": 1, "file_name": "a.jpg"}]})
    with pytest.raises(ValueError, match="together at most 268 million pixels"):
        read_coco(changed(images_0={"height": 10**6, "width": 10**6}))


@pytest.mark.parametrize(
    ("categories", "kept"),
    [
        # The project is the parent of all, and is called like one of them (Roboflow).
        ([(0, "fish", "none"), (1, "fish", "fish"), (2, "crab", "fish")], ["fish", "crab"]),
        ([(0, "sea", "none"), (1, "fish", "sea"), (2, "crab", "sea")], ["fish", "crab"]),
        ([(0, "fish", None), (1, "fish", None), (2, "crab", None)], ["fish", "crab"]),
        # A class is not its own parent (COCO's person), and none is without a child.
        ([(0, "person", "person"), (1, "fish", "sea"), (2, "crab", "sea")], 3),
        ([(0, "extra", "sea"), (1, "fish", "sea"), (2, "crab", "sea")], 3),
    ],
)
def test_parents_of_categories_are_left_out(tmp_path, caplog, categories, kept):
    content = {
        "images": CONTENT["images"][:2],
        "categories": [{"id": i, "name": n, "supercategory": s} for i, n, s in categories],
        "annotations": [
            {"id": 1, "image_id": 70, "category_id": 1},
            {"id": 2, "image_id": 3, "category_id": 2},
        ],
    }
    names = CocoImages(write(tmp_path, content)).class_names
    assert names == kept if isinstance(kept, list) else len(names) == kept
    assert ("only the parent of others" in caplog.text) == isinstance(kept, list)
    content["annotations"][0]["category_id"] = 0  # it has an annotation: it stays
    if len({name for _, name, _ in categories}) == 3:
        assert len(CocoImages(write(tmp_path, content)).class_names) == 3


TRIANGLE = [0, 0, 4, 0, 4, 4]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([], "is empty"),
        (None, "is empty"),
        ([[0, 0, 4, 4]], "at least three points"),
        ([[0, 0, 4, 0, 4]], "at least three points"),
        ([[0, 0, float("inf"), 0, 4, 4]], "not finite"),
        ([[0, 0, float("nan"), 0, 4, 4]], "not finite"),
        ([[0, 0, 1e18, 0, 4, 4]], "far outside"),
        ([[-900, 0, 4, 0, 4, 4]], "far outside"),
        ([[7, 7, 9, 7, 9, 9]], "outside the image"),
        ([[True, 0, 4, 0, 4, 4]], "holds True"),
        ("mask.png", "neither an RLE"),
    ],
)
def test_single_annotations_without_a_mask_are_left_out(tmp_path, caplog, bad, reason):
    content = copy.deepcopy(CONTENT)
    for annotation in content["annotations"]:
        annotation["segmentation"] = [TRIANGLE]
    content["images"] = [{**i, "height": 5, "width": 6} for i in content["images"]]
    whole = read_coco(content, masks=True)["annotations"]
    content["annotations"][2]["segmentation"] = bad
    path = write(tmp_path, content)
    read = read_coco(path, masks=True)["annotations"]
    expected = [a for a in whole if a["id"] != 3]
    assert read == [{**a, "id": number} for number, a in enumerate(expected, start=1)]
    assert "set.json: 1 of 6 annotations have no usable mask and are left out" in caplog.text
    assert re.search(rf"annotations\[2\] \(id 3\): .*{reason}", caplog.text)
    assert len(CocoImages(path).images) == 4  # the label stays
    for annotation in content["annotations"]:
        annotation["segmentation"] = bad
    with pytest.raises(ValueError, match=r"none of the 6 annotations has a usable mask: .*\[0\]"):
        read_coco(write(tmp_path, content), masks=True)
    content = read_coco(write(tmp_path, content), masks=True, need_masks=False)
    assert content["annotations"] == []


def test_areas_and_boxes():
    content = changed(images_0={"height": 5, "width": 6})
    odd = [12.5, "12.5", "wide", float("nan"), None, -1]
    content["annotations"] = [
        {**a, "image_id": 70, "segmentation": [TRIANGLE], "area": area, "bbox": ["a"]}
        for a, area in zip(CONTENT["annotations"], odd, strict=True)
    ]
    read = read_coco(content, masks=True)["annotations"]
    pixels = read[2]["area"]
    assert [a["area"] for a in read] == [12.5, 12.5, pixels, pixels, pixels, pixels]
    assert pixels == 6 and read[0]["bbox"] == [1, 0, 3, 3]


def test_accents_of_file_names_may_be_written_in_either_way(tmp_path):
    name = unicodedata.normalize("NFC", "für/고양이 café.png")
    content = changed(images_0={"file_name": name})
    content = {**content, "images": content["images"][:1], "annotations": []}
    coco = CocoImages(write(tmp_path, content))
    path = tmp_path / "images" / unicodedata.normalize("NFD", name)
    path.parent.mkdir(parents=True)
    cv2.imencode(".png", np.full((4, 6, 3), 7, np.uint8))[1].tofile(path)
    coco.check_files(tmp_path / "images")
    assert read_image(tmp_path / "images" / name, (4, 6)).max() == 7


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("\ud83d.jpg", "which is not UTF-8; rename it"),
        ("a\0.jpg", "which no file can be called"),
        ("ä" * 120 + ".jpg", "of 244 bytes.* a name of at most 215 bytes"),
        ("x" * 220 + "/a.jpg", "of 220 bytes"),
    ],
)
def test_names_that_no_file_of_ours_can_have(name, words):
    with pytest.raises(ValueError, match=rf"images\[0\] \(id 70\) has file_name '.*{words}"):
        read_coco(changed(images_0={"file_name": name}))
    assert read_coco(changed(images_0={"file_name": "ä" * 105 + ".jpg"}))


def test_labels_that_teach_nothing_are_told(caplog):
    labels = np.zeros((30, 5), bool)
    labels[:29, 0] = True
    labels[:14, 1] = labels[:14, 2] = True
    labels[20:29, 3] = True
    warn_of_labels(["all", "one", "other", "few", "Few"], labels, "l.csv")
    told = caplog.text
    assert "l.csv: in every one of the 29 labelled images: all (29); add images without it" in told
    assert "l.csv: always together: one (14), other (14); nothing tells one from the other" in told
    assert "l.csv: classes of fewer than 10 images: few (9); expect little of them" in told
    assert "l.csv: in no image: Few (0); nothing can be learned about it" in told
    assert "l.csv: names that differ only in case: few (9), Few (0)" in told
    caplog.clear()
    warn_of_labels(["one"], np.ones((30, 1)), "l.csv")
    assert "l.csv: there is only one class" in caplog.text and "in every" not in caplog.text
    caplog.clear()
    warn_of_labels(["a", "b"], np.eye(2).repeat(10, axis=0), "l.csv")
    assert not caplog.text
