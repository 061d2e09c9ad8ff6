"""VOC 2012 and SBD, in small devkits of the published layout, as COCO json."""

import json

import numpy as np
import pytest
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

from lib.data.coco import CocoImages
from lib.data.voc import CLASS_NAMES, find_sbd, find_voc, image_id, prepare_trainaug, prepare_val
from tests.devkits import Picture, class_map, picture, save_palette, write_sbd, write_voc
from tests.small_training import tool

TRAIN = {
    "2007_000032": picture((9, 14), (1, 1, 15)),
    "2007_000039": picture((12, 8), (20,)),
}
VAL = {"2007_000033": picture((9, 14), (1, 7)), "2007_000042": picture((7, 7), (19, 19))}
SBD_TRAIN = {
    "2007_000032": picture((9, 14), (2,), void=False),  # VOC's annotation is taken instead
    "2008_000002": picture((10, 11), (20, 3, 3), void=False),
    "2007_000033": picture((9, 14), (5,), void=False),  # in VOC val: not for training
}
SBD_VAL = {
    "2008_000003": picture((6, 9), (19, 15)),
    "2007_000042": picture((7, 7), (5,), void=False),
}
TRAINAUG = ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]


@pytest.fixture
def folders(tmp_path):
    only = {name: one for name, one in {**SBD_TRAIN, **SBD_VAL}.items() if name[:4] == "2008"}
    return write_voc(tmp_path, TRAIN, VAL, only), write_sbd(tmp_path, SBD_TRAIN, SBD_VAL)


def masks_of(content, name):
    """(category id, mask) of every annotation of an image, in order."""
    return [
        (a["category_id"], coco_mask.decode(a["segmentation"]).astype(bool))
        for a in content["annotations"]
        if a["image_id"] == image_id(name)
    ]


def assert_objects(content, name, expected: Picture):
    found = masks_of(content, name)
    assert [category for category, _ in found] == list(expected.classes)
    for number, (_, mask) in enumerate(found, 1):
        np.testing.assert_array_equal(mask, expected.labels == number)


def test_trainaug(folders):
    prepared = prepare_trainaug(*folders, jobs=1)
    content = prepared.json
    assert not prepared.missing and prepared.sources == {"VOC": 2, "SBD": 2}
    assert [i["file_name"] for i in content["images"]] == [f"{name}.jpg" for name in TRAINAUG]
    assert content["images"][0] == {
        "id": 2007000032,
        "file_name": "2007_000032.jpg",
        "height": 9,
        "width": 14,
    }
    for name in TRAINAUG:
        assert_objects(content, name, {**SBD_TRAIN, **SBD_VAL, **TRAIN}[name])
    assert [a["id"] for a in content["annotations"]] == list(range(1, 10))


def test_val(folders):
    prepared = prepare_val(folders[0], jobs=1)
    assert not prepared.missing and prepared.sources == {"VOC": 2}
    assert [i["id"] for i in prepared.json["images"]] == [2007000033, 2007000042]
    for name, one in VAL.items():
        assert_objects(prepared.json, name, one)


def test_categories_are_those_of_voc(folders):
    categories = prepare_val(folders[0], jobs=1).json["categories"]
    assert [c["id"] for c in categories] == list(range(1, 21))
    assert categories[0]["name"] == "aeroplane" and categories[14]["name"] == "person"
    assert categories[19]["name"] == "tvmonitor" and len({c["name"] for c in categories}) == 20


def test_areas_boxes_and_void(folders):
    for annotation in prepare_trainaug(*folders, jobs=1).json["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["area"] == mask.sum() > 0
        assert annotation["bbox"] == box and annotation["iscrowd"] == 0
    labels = TRAIN["2007_000032"].labels
    covered = sum(m for _, m in masks_of(prepare_trainaug(*folders, jobs=1).json, "2007_000032"))
    np.testing.assert_array_equal(covered, (labels > 0) & (labels != 255))


def test_numbers_of_objects_may_have_gaps(tmp_path):
    labels = np.zeros((5, 6), np.uint8)
    labels[1:4, 1:3], labels[2:, 4:] = 3, 9
    one = Picture(labels, (0, 0, 12, 0, 0, 0, 0, 0, 8))
    voc = write_voc(tmp_path, {"2007_000001": one}, {"2007_000002": one})
    content = prepare_val(voc, jobs=1).json
    assert [category for category, _ in masks_of(content, "2007_000002")] == [12, 8]


def test_the_class_is_that_of_most_pixels(folders):
    one = VAL["2007_000033"]
    classes = class_map(one)
    inside = np.argwhere(one.labels == 1)
    classes[tuple(inside[0])], classes[tuple(inside[1])] = 0, 9
    save_palette(folders[0] / "SegmentationClass" / "2007_000033.png", classes)
    assert_objects(prepare_val(folders[0], jobs=1).json, "2007_000033", one)


def test_folders_may_be_given_at_any_level(folders, tmp_path):
    voc, sbd = folders
    for given in (voc, voc.parent, tmp_path):
        assert find_voc(given) == voc
    for given in (sbd, sbd.parent, tmp_path):
        assert find_sbd(given) == sbd
    with pytest.raises(FileNotFoundError, match="not a VOC2012 devkit"):
        find_voc(sbd)
    with pytest.raises(FileNotFoundError, match="not SBD's benchmark_RELEASE"):
        find_sbd(voc)


def test_what_is_missing_or_damaged_is_left_out_and_named(folders):
    voc, sbd = folders
    (voc / "JPEGImages" / "2007_000039.jpg").unlink()
    (sbd / "inst" / "2008_000002.mat").unlink()
    (sbd / "inst" / "2008_000003.mat").write_bytes(b"MATLAB")
    prepared = prepare_trainaug(voc, sbd, jobs=1)
    assert [i["file_name"] for i in prepared.json["images"]] == ["2007_000032.jpg"]
    assert list(prepared.missing) == ["2007_000039", "2008_000002", "2008_000003"]
    assert prepared.missing["2007_000039"].endswith("JPEGImages/2007_000039.jpg: no such file")
    assert prepared.missing["2008_000002"].endswith("inst/2008_000002.mat: no such file")
    assert "no readable GTinst" in prepared.missing["2008_000003"]


def break_size(voc, sbd):
    Image.new("RGB", (5, 5)).save(voc / "JPEGImages" / "2007_000032.jpg")


def break_colours(voc, sbd):
    path = voc / "SegmentationObject" / "2007_000032.png"
    Image.open(path).convert("RGB").save(path)


def break_png(voc, sbd):
    path = voc / "SegmentationClass" / "2007_000032.png"
    path.write_bytes(path.read_bytes()[:60])


def break_pair(voc, sbd):
    save_palette(voc / "SegmentationClass" / "2007_000032.png", np.zeros((3, 3), np.uint8))


def break_class(voc, sbd):
    save_palette(voc / "SegmentationClass" / "2007_000032.png", np.zeros((9, 14), np.uint8))


def break_category(voc, sbd):
    save_palette(voc / "SegmentationClass" / "2007_000032.png", np.full((9, 14), 21, np.uint8))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (break_size, "the image is 5x5 (height x width), its masks 9x14"),
        (break_colours, "mode RGB, expected the palette images"),
        (break_png, "not a readable PNG"),
        (break_pair, "3x3, but"),
        (break_class, "object 1 of 2007_000032.png has no class"),
        (break_category, "class 21, VOC has 1..20"),
    ],
)
def test_bad_annotations_name_the_file(folders, damage, text):
    damage(*folders)
    missing = prepare_trainaug(*folders, jobs=1).missing
    assert list(missing) == ["2007_000032"]
    assert text in missing["2007_000032"] and "2007_000032." in missing["2007_000032"]


def test_sbd_objects_without_category(folders):
    instances = {"Segmentation": np.full((10, 11), 2, np.uint8), "Categories": np.array([[3]])}
    scipy.io.savemat(folders[1] / "inst" / "2008_000002.mat", {"GTinst": instances})
    missing = prepare_trainaug(*folders, jobs=1).missing
    assert "object 2 of the segmentation has no class among its 1" in missing["2008_000002"]


def test_lists(folders):
    voc, sbd = folders
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text("2007_000033\n")
    with pytest.raises(ValueError, match="2007_000033 is in both"):
        prepare_trainaug(voc, sbd, jobs=1)
    path.write_text("2007_000032.jpg\n")
    with pytest.raises(ValueError, match="no image name like"):
        prepare_trainaug(voc, sbd, jobs=1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt: no such list"):
        prepare_trainaug(voc, sbd, jobs=1)


def test_tool_writes_what_the_loader_reads(folders, capsys):
    voc, sbd = folders
    args = ["--voc", str(voc.parent), "--sbd", str(sbd.parent), "--jobs", "1"]
    assert tool("data voc")(args) == 0
    said = capsys.readouterr().out
    assert "4 images (annotated: 2 by VOC, 2 by SBD) with 9 objects" in said
    assert "the lists name 4 images; the whole of trainaug has 10582" in said
    coco = CocoImages(voc / "annotations" / "voc_2012_trainaug.json")
    assert coco.class_names == list(CLASS_NAMES) and coco.without_labels == 0
    by_name = {i.file_name: np.flatnonzero(i.image_labels).tolist() for i in coco.images}
    assert by_name == {
        "2007_000032.jpg": [0, 14],
        "2007_000039.jpg": [19],
        "2008_000002.jpg": [2, 19],
        "2008_000003.jpg": [14, 18],
    }
    coco.check_files(voc / "JPEGImages")
    assert len(CocoImages(voc / "annotations" / "voc_2012_val.json")) == 2


def test_tool_ends_with_1_where_images_are_missing_and_2_without_data(folders, tmp_path, capsys):
    voc, sbd = folders
    (sbd / "inst" / "2008_000002.mat").unlink()
    output = tmp_path / "out"
    args = ["--voc", str(voc), "--output", str(output), "--jobs", "1"]
    assert tool("data voc")([*args, "--sbd", str(sbd)]) == 1
    assert "1 of 4 images failed:\n  2008_000002: " in capsys.readouterr().err
    assert len(CocoImages(output / "voc_2012_trainaug.json")) == 3
    assert tool("data voc")(["--voc", str(tmp_path / "nowhere")]) == 2
    assert "error: " in capsys.readouterr().err
    assert tool("data voc")([*args, "--sbd", str(tmp_path / "nowhere")]) == 2


def test_tool_does_not_write_an_empty_split(folders, tmp_path, capsys):
    for path in (folders[0] / "JPEGImages").iterdir():
        path.unlink()
    args = ["--voc", str(folders[0]), "--output", str(tmp_path / "out"), "--jobs", "1"]
    assert tool("data voc")(args) == 2
    assert "none of the 2 images of val could be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tool_without_sbd_writes_val_alone(folders, tmp_path, capsys):
    args = ["--voc", str(folders[0]), "--output", str(tmp_path / "out"), "--jobs", "1"]
    assert tool("data voc")(args) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["voc_2012_val.json"]
    assert "neither --sbd nor --labels given" in capsys.readouterr().out


def test_tool_makes_trainaug_of_a_list_of_labels(folders, tmp_path, capsys):
    """The list of other weakly supervised systems; names with or without folder and suffix."""
    voc = folders[0]
    listed = tmp_path / "train_aug_cls.txt"
    listed.write_text(
        "2008_000003 18 14\n/JPEGImages/2007_000032.jpg 0 14\n2007_000039.jpg 19\n2008_000009 0\n"
    )
    output = tmp_path / "out"
    args = ["--voc", str(voc), "--output", str(output), "--jobs", "1", "--labels", str(listed)]
    assert tool("data voc")(args) == 1  # there is no image 2008_000009
    told = capsys.readouterr()
    assert "3 images (annotated: 3 by train_aug_cls.txt) with 5 labels" in told.out
    assert "1 of 4 images failed:\n  2008_000009: " in told.err
    coco = CocoImages(output / "voc_2012_trainaug.json")
    assert coco.class_names == list(CLASS_NAMES)
    assert [(i.image_id, i.size) for i in coco.images] == [
        (2008000003, (6, 9)),
        (2007000032, (9, 14)),
        (2007000039, (12, 8)),
    ]
    classes = [np.flatnonzero(i.image_labels).tolist() for i in coco.images]
    assert classes == [[14, 18], [0, 14], [19]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2007_000032 20\n", ":1: class id 20, but there are 20 classes"),
        ("2007_000032 0\nJPEGImages/2007_000032.jpg 1\n", "2007_000032 occurs more than once"),
        ("2007_000032 0\n2007_000033 1\n", "1 of its images are in VOC's val"),
        ("cat_7 0\n", "'cat_7' is no image name"),
        ("2007_000032 aeroplane\n", ":1: 'aeroplane' is not a class id"),
    ],
)
def test_lists_of_labels_that_are_none_of_voc(folders, tmp_path, capsys, text, message):
    listed = tmp_path / "list.txt"
    listed.write_text(text)
    args = ["--voc", str(folders[0]), "--output", str(tmp_path / "out"), "--jobs", "1"]
    assert tool("data voc")([*args, "--labels", str(listed)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out/voc_2012_trainaug.json").exists()


def test_tool_does_not_replace_what_was_made_elsewhere(folders, tmp_path, capsys):
    voc, sbd = folders
    output = tmp_path / "out"
    output.mkdir()
    published = output / "voc_2012_trainaug.json"
    published.write_text('{"images": [], "type": "instances"}')
    args = ["--voc", str(voc), "--output", str(output), "--jobs", "1"]
    assert tool("data voc")([*args, "--sbd", str(sbd)]) == 2
    assert "voc_2012_trainaug.json: made elsewhere" in capsys.readouterr().err
    assert not (output / "voc_2012_val.json").exists()  # told before the work
    assert tool("data voc")(args) == 0  # val alone
    assert "instances" in published.read_text()
    assert tool("data voc")([*args, "--sbd", str(sbd), "--overwrite"]) == 0
    assert len(CocoImages(published)) == 4
    assert tool("data voc")([*args, "--sbd", str(sbd)]) == 0  # our own is made again


def test_json_made_elsewhere_is_accepted(tmp_path):
    """Another order, other fields, polygons, ids that are no file names, float boxes."""
    content = {
        "info": {"year": 2012},
        "licenses": [],
        "type": "instances",
        "images": [
            {"file_name": "2008_000002.jpg", "height": 10, "width": 11, "id": 2008000002},
            {"file_name": "2007_000032.jpg", "height": 9, "width": 14, "id": 2007000032},
        ],
        "annotations": [
            {
                "id": 7,
                "image_id": 2007000032,
                "category_id": 15,
                "segmentation": [[1, 1, 5, 1, 5, 5]],
                "area": 8.0,
                "bbox": [1.0, 1.0, 4.0, 4.0],
                "iscrowd": 0,
                "ignore": 0,
            },
            {"id": 9, "image_id": 2008000002, "category_id": 1},
        ],
        "categories": [
            {"id": i, "name": name, "supercategory": "none"}
            for i, name in reversed(list(enumerate(CLASS_NAMES, 1)))
        ],
    }
    path = tmp_path / "voc_2012_trainaug.json"
    path.write_text(json.dumps(content))
    coco = CocoImages(path)
    assert coco.class_names == list(CLASS_NAMES)
    assert [np.flatnonzero(i.image_labels).tolist() for i in coco.images] == [[0], [14]]
