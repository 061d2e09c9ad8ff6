import json
import re

import cv2
import numpy as np
import pytest

from lib.data.tags import (
    read_coco_tags,
    read_csv_tags,
    read_folder_tags,
    read_tags,
    read_text_tags,
)


def write(folder, text, name="list.txt"):
    path = folder / name
    path.write_text(text)
    return path


def save_image(path, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((*size, 3), np.uint8))


def test_text(tmp_path):
    path = write(tmp_path, "2007_000032 14 0\n\n/img/b.jpg 2\r\nc.jpg\n")
    tags = read_text_tags(path)
    assert tags.labels == {"2007_000032": (0, 14), "/img/b.jpg": (2,), "c.jpg": ()}
    assert list(tags.labels) == ["2007_000032", "/img/b.jpg", "c.jpg"]
    assert tags.class_names == tuple(f"class {n}" for n in range(15))
    names = [f"n{n}" for n in range(20)]
    assert read_text_tags(path, names).class_names == tuple(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 0\nb 1.5\n", ":2: '1.5' is not a class id"),
        ("a -1\n", ":1: '-1' is not a class id"),
        ("a cat\n", ":1: 'cat' is not a class id"),
        ("a 0\n\na 1\n", ":3: image a occurs for the second time"),
        ("a 0 3\n", ":1: class id 3, but there are 3 classes, 0..2; ids count from 0"),
        ("", ": no image has a class"),
        ("a\nb\n", ": no image has a class"),
    ],
)
def test_bad_text(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        read_text_tags(path, ["x", "y", "z"])


def test_csv(tmp_path):
    path = write(tmp_path, 'file,label\nb.jpg, dog\n"a, b.jpg",cat\n\nb.jpg,cat\nd.jpg,\n')
    tags = read_csv_tags(path)
    assert tags.class_names == ("cat", "dog")
    assert tags.labels == {"b.jpg": (0, 1), "a, b.jpg": (0,), "d.jpg": ()}
    assert read_csv_tags(path, ["dog", "eel", "cat"]).labels["b.jpg"] == (0, 2)
    assert read_csv_tags(write(tmp_path, "a.jpg,cat\n")).labels == {"a.jpg": (0,)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,cat\nb.jpg\n", ":2: expected `file,label`, got 'b.jpg'"),
        ("a.jpg,cat,dog\n", ":1: expected `file,label`, got 'a.jpg,cat,dog'"),
        (",cat\n", ":1: expected `file,label`, got ',cat'"),
        ("file,label\na.jpg,cow\n", ":2: label 'cow' is none of the 2 classes (cat, dog)"),
        ("a.jpg,\n", ": no image has a label"),
        ("", ": no image has a label"),
        ('a.jpg,"cat" x\n', ":1: not valid CSV"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        read_csv_tags(path, ["cat", "dog"])


def test_missing_lists_and_binary_ones(tmp_path):
    for read in (read_text_tags, read_csv_tags):
        with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
            read(tmp_path / "none.txt")
        (tmp_path / "list.txt").write_bytes(b"\xff\x00a")
        with pytest.raises(ValueError, match=r"list\.txt:1: not a text file in UTF-8"):
            read(tmp_path / "list.txt")
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        read_folder_tags(tmp_path / "none")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("a.jpg 0\n".encode("utf-8-sig"))
    assert list(read_text_tags(path).labels) == ["a.jpg"]


def test_folders(tmp_path):
    for folder in ("dog", "cat", ".git"):
        (tmp_path / folder).mkdir()
    files = ("dog/2.PNG", "dog/1.jpg", "cat/1.jpg", ".git/x.jpg", "dog/.x.jpg", "dog/notes.txt")
    for name in (*files, "readme.md"):
        (tmp_path / name).touch()
    tags = read_folder_tags(tmp_path)
    assert tags.class_names == ("cat", "dog")
    assert tags.labels == {"cat/1.jpg": (0,), "dog/1.jpg": (1,), "dog/2.PNG": (1,)}


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="it has no sub-folders; expected one for each class"):
        read_folder_tags(tmp_path)
    (tmp_path / "eel").mkdir()
    with pytest.raises(ValueError, match="eel: no images in this class's folder"):
        read_folder_tags(tmp_path)


def test_folders_in_folders_and_other_files(tmp_path, caplog):
    for name in ("cat/a/1.jpg", "cat/b/1.jpg", "dog/x.heic", "dog/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    tags = read_folder_tags(tmp_path)
    assert tags.labels == {"cat/a/1.jpg": (0,), "cat/b/1.jpg": (0,), "dog/y.png": (1,)}
    assert "passed over, by suffix: 1 .heic" in caplog.text


def coco(folder, **changes):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
        "categories": [{"id": 20, "name": "dog"}, {"id": 10, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 20},
            {"image_id": 7, "category_id": 20},
            {"image_id": 7, "category_id": 10, "iscrowd": 1},
        ],
    }
    return write(folder, json.dumps(content | changes), "labels.json")


def test_coco(tmp_path):
    tags = read_coco_tags(coco(tmp_path))
    assert tags.class_names == ("cat", "dog")
    assert tags.labels == {"a.jpg": (1,), "b.jpg": ()}
    assert tags.category_ids == (10, 20)
    assert tags.image_ids == {"a.jpg": 7, "b.jpg": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 7}]}, r"images\[0\] \(id 7\) has no 'file_name'"),
        ({"images": 3}, "has no list 'images'"),
        ({"annotations": [{"image_id": 8, "category_id": 20}]}, r"annotations\[0\] has image_id 8, which is not in"),
        ({"annotations": []}, "no image has a label"),
        (
            {"images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "a.jpg"}]},
            r"images\[0\] and images\[1\] have the same file_name, 'a.jpg'",
        ),
    ],
)
def test_bad_coco(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_coco_tags(coco(tmp_path, **changes))


def test_the_form_is_told_by_the_suffix(tmp_path):
    assert read_tags(write(tmp_path, "a.jpg,x\n", "l.CSV")).class_names == ("x",)
    assert read_tags(write(tmp_path, "a.jpg 1\n", "l.txt")).labels == {"a.jpg": (1,)}
    assert read_tags(coco(tmp_path)).class_names == ("cat", "dog")
    save_image(tmp_path / "folder/fox/1.jpg")
    assert read_tags(tmp_path / "folder").class_names == ("fox",)
    with pytest.raises(ValueError, match=r"l\.xlsx: labels come as a \.csv.*spreadsheet"):
        read_tags(write(tmp_path, "", "l.xlsx"))
    with pytest.raises(FileNotFoundError, match=r"none\.xlsx: no such file"):
        read_tags(tmp_path / "none.xlsx")
