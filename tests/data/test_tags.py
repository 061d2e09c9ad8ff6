import json
import pickle
import re

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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


CATS = {"a.jpg": (0,), "b.jpg": (1,), "c.jpg": (0,)}
ROWS = [("a.jpg", "cat"), ("b.jpg", "dog"), ("c.jpg", "cat")]


def rows(mark=","):
    return "".join(f"{file}{mark}{label}\n" for file, label in ROWS)


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"{file},{label}\n{rows()}"
            for file, label in [
                ("File", "Label"),
                ("filename", "class"),
                ("file_name", "category_name"),
                ("filenames", "cats"),
                ("image", "tags"),
                ("Image", "Id"),
                ("image_id", "species"),
                ("image path", "target"),
                ("ID", "Labels"),
                ("picture no", "what is on it"),  # no usual names, but no image either
                ("name", "animal"),
            ]
        ),
        "sep=,\nfile,label\n" + rows(),
        "sep=;\n" + rows(";"),
        "file;label\n" + rows(";"),
        "file\tlabel\n" + rows("\t"),
        rows("\t"),
        rows(";"),
        rows("|"),
        rows().replace("\n", "\r\n"),
        "\n" + rows().replace("\n", "\n\n"),
        ",file,label\n" + "".join(f"{n},{file},{label}\n" for n, (file, label) in enumerate(ROWS)),
        "fname,labels,is_valid\n" + "".join(f"{file},{label},True\n" for file, label in ROWS),
        "label,file\n" + "".join(f"{label},{file}\n" for file, label in ROWS),
        "".join(f"{label},{file}\n" for file, label in ROWS),
        "".join(f'{file},"{label}\n"\n' for file, label in ROWS),
        "file,cat,dog\na.jpg,1,0\nb.jpg,0,1\nc.jpg,1,0\n",
        "file,cat,dog,split\na.jpg,1.0,0.0,x\nb.jpg,0.0,1.0,x\nc.jpg,1.0,,y\n",
        ",cat,dog\na.jpg,True,False\nb.jpg,False,True\nc.jpg,True,False\n",
        "filename,width,height,class,xmin\na.jpg,9,9,cat,1\nb.jpg,9,9,dog,1\n"
        "c.jpg,9,9,cat,1\nc.jpg,9,9,cat,5\n",
    ],
)
def test_lists_as_other_tools_write_them(tmp_path, text):
    tags = read_csv_tags(write(tmp_path, text))
    assert (tags.class_names, tags.labels) == (("cat", "dog"), CATS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark(tmp_path, encoding):
    (tmp_path / "l.csv").write_bytes("file,label\na.jpg,cañon\n".encode(encoding))
    assert read_csv_tags(tmp_path / "l.csv").class_names == ("cañon",)
    (tmp_path / "l.txt").write_bytes("a.jpg 0\n".encode(encoding))
    assert read_text_tags(tmp_path / "l.txt").labels == {"a.jpg": (0,)}


def test_an_encoding_without_a_mark_is_told_with_the_remedy(tmp_path):
    (tmp_path / "l.csv").write_bytes("file,label\na.jpg,cat\nb.jpg,cañon\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"l\.csv:3: not a text file in UTF-8 .*iconv -f cp1252"):
        read_csv_tags(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_bytes("a.jpg,cat\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"l\.csv: .* zero bytes"):
        read_csv_tags(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["dog,animal", "cat,animal", "cat"], [("animal", "dog"), ("animal", "cat"), ("cat",)]),
        (["a,b", "b,c", "c,a"], [("a", "b"), ("b", "c"), ("a", "c")]),
        (["cat|dog", "dog", ""], [("cat", "dog"), ("dog",), ()]),
        (["cat; dog", "dog;", "x"], [("cat", "dog"), ("dog",), ("x",)]),
        (["['dog', 'big cat']", '["dog"]', "[]"], [("big cat", "dog"), ("dog",), ()]),
        # One label with a comma or a space: its parts are found nowhere else.
        (["tench, Tinca", "dog", "polar bear"], [("tench, Tinca",), ("dog",), ("polar bear",)]),
    ],
)
def test_several_labels_in_a_cell(tmp_path, caplog, cells, expected):
    caplog.set_level("INFO")
    quoted = (cell.replace('"', '""') for cell in cells)
    lines = [f'{n}.jpg,"{cell}"\n' for n, cell in enumerate(quoted)]
    tags = read_csv_tags(write(tmp_path, "file,label\n" + "".join(lines)))
    names = [tuple(tags.class_names[c] for c in tags.labels[f"{n}.jpg"]) for n in range(3)]
    assert names == expected
    several = any(len(labels) > 1 for labels in expected)
    assert ("cells with several labels" in caplog.text) == several


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["dog", "bear, brown", "bear, black"], ":3: is 'bear, brown' one label or several?"),
        (["dog", "cat", "cat dog"], ":4: is 'cat dog' one label or the labels cat, dog?"),
        (["5", "0", "16 27"], ":4: is '16 27' one label or the labels 16, 27?"),
    ],
)
def test_cells_that_may_be_one_label_or_several_are_asked_back(tmp_path, cells, message):
    lines = [f'{n}.jpg,"{cell}"\n' for n, cell in enumerate(cells)]
    path = write(tmp_path, "file,label\n" + "".join(lines))
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        read_csv_tags(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,width,height\na.jpg,5,6\n", ":1: no column of labels among 'file, width, height'"),
        ("file,cat,dog\na.jpg,1,0\na.jpg,1,0\n", ":3: image a.jpg occurs for the second time"),
        ("file,cat,cat\na.jpg,1,0\n", ": two columns are called 'cat'"),
        ("file,cat,dog\na.jpg,0,0\n", ": no image has a class; every value is 0"),
    ],
)
def test_columns_that_say_no_labels(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        read_csv_tags(path)


def test_zeros_and_ones_for_every_class(tmp_path):
    expected = {"a.jpg": (2,), "b.jpg": (0, 1), "c.jpg": ()}
    for text in (
        "a.jpg 0 0 1\nb.jpg 1 1 0\nc.jpg 0 0 0\n",
        "a.jpg,0,0,1\nb.jpg,1,1,0\nc.jpg,0,0,0",
    ):
        read = read_csv_tags if "," in text else read_text_tags
        tags = read(write(tmp_path, text))
        assert (tags.class_names, tags.labels) == (("class 0", "class 1", "class 2"), expected)
    tags = read_text_tags(write(tmp_path, "a.jpg 0 0\nb.jpg 0 1\n"))
    assert tags.labels == {"a.jpg": (), "b.jpg": (1,)}
    assert read_text_tags(write(tmp_path, "a 0\nb 1\n")).labels == {"a": (0,), "b": (1,)}
    with pytest.raises(ValueError, match=r"list\.txt:1: .* class ids, or 0/1 for each of two"):
        read_text_tags(write(tmp_path, "a.jpg 0 1\nb.jpg 1 0\n"))
    with pytest.raises(ValueError, match=r"list\.txt:2: a class id occurs twice"):
        read_text_tags(write(tmp_path, "a.jpg 4\nb.jpg 3 3\n"))


ODD_CELLS = (
    *("a.jpg", "b.jpg", "cat", "dog", "cat,dog", "cat|dog", "['a','b']", "[1,", "[[]]", "0", "1"),
    *("-1", "0.5", "", "file", "label", "image", "id", '"', '""', "é", "\0", "\u2028", "sep=;"),
    "cat dog",
)
CELLS = st.text(max_size=4) | st.sampled_from(ODD_CELLS)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(CELLS, max_size=4), max_size=5),
    st.sampled_from(",;\t| "),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
)
@example(  # numpy reads the header of such a .npy as unfinished Python
    [["", "\0", "0\x80", "0𐀀𐀀"], [], ["", "", "0[\x80𐀀"], ["0", "0\x80\x80", "0𐀀𐀀"]],
    ",",
    "\n",
    "utf-8",
)
def test_every_list_ends_in_labels_or_an_error_that_names_it(
    tmp_path_factory, cells, mark, line_end, encoding
):
    text = line_end.join(mark.join(row) for row in cells).encode(encoding, "replace")
    for suffix in (".csv", ".txt", ".npy"):
        path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
        path.write_bytes(text if suffix != ".npy" else b"\x93NUMPY\1\0" + text)
        try:
            tags = read_tags(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert all(0 <= c < len(tags.class_names) for own in tags.labels.values() for c in own)


def test_dictionaries_of_vectors(tmp_path):
    path = tmp_path / "cls_labels.npy"
    vectors = {2007000032: np.array([0, 1], np.float32), "b": [1, 1], np.str_("c"): np.zeros(2)}
    np.save(path, vectors, allow_pickle=True)
    tags = read_tags(path)
    assert tags.class_names == ("class 0", "class 1")
    assert tags.labels == {"2007000032": (1,), "b": (0, 1), "c": ()}
    for wrong, message in [
        (np.zeros((2, 2)), "found a .*array, expected a dictionary"),
        ({"a": [0, 2]}, "the entry 'a' is not a vector of 0 and 1"),
        ({"a": [0, 1], "b": [1]}, "the entry 'b' has another length than the first"),
        ({"a": pickle.Unpickler}, "refused: the pickle names the global"),
    ]:
        np.save(path, wrong, allow_pickle=True)
        with pytest.raises(ValueError, match=rf"cls_labels\.npy: .*{message}"):
            read_tags(path)
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(ValueError, match=r"cls_labels\.npy: not a readable \.npy file"):
        read_tags(path)


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
        (
            {"annotations": [{"image_id": 8, "category_id": 20}]},
            r"annotations\[0\] has image_id 8, which is not in",
        ),
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
