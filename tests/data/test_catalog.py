import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.data.catalog import CATALOG, add_dataset_arguments, dataset_from_args
from lib.data.coco import CocoImages


def parse(*words, default=None):
    parser = argparse.ArgumentParser()
    add_dataset_arguments(parser, default=default)
    return dataset_from_args(parser.parse_args(words))


def test_named_dataset():
    dataset = parse("--dataset", "shapes_val")
    assert dataset == CATALOG["shapes_val"]
    assert dataset.json == Path("data/shapes/annotations/val.json")
    assert dataset.images == Path("data/shapes/val")
    assert dataset.proposals == Path("data/proposals/shapes_val")
    assert dataset.clusters == Path("data/clusters/shapes_val")
    assert dataset.prm == Path("data/prm/shapes_val.pth")


def test_the_published_names_are_there():
    published = {"voc2012trainaug", "voc2012sbdval", "coco2017train", "coco2017val", "coco2017test"}
    assert published <= set(CATALOG)


def test_data_root_and_overrides():
    dataset = parse("--dataset", "coco2017val", "--data-root", "/d", "--proposals", "p")
    assert dataset.json == Path("/d/coco2017/annotations/instances_val2017.json")
    assert dataset.proposals == Path("p")
    assert dataset.clusters == Path("/d/clusters/coco2017val")
    assert parse("--dataset", "coco2017val", "--clusters", "c").clusters == Path("c")


def test_any_json():
    dataset = parse("--json", "x/mine.json", "--images", "y")
    assert (dataset.name, dataset.json, dataset.images) == ("mine", Path("x/mine.json"), Path("y"))
    assert dataset.prm == Path("data/prm/mine.pth")
    assert parse("--json", "x/mine.json", "--images", "y", "--name", "z").name == "z"


def test_default_gives_way():
    assert parse(default="shapes_train").name == "shapes_train"
    assert parse("--dataset", "shapes_val", default="shapes_train").name == "shapes_val"
    assert parse("--json", "a.json", "--images", "y", default="shapes_train").name == "a"


def test_images_and_labels(tmp_path):
    (tmp_path / "my photos").mkdir()
    cv2.imwrite(str(tmp_path / "my photos/a.png"), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "l.csv").write_text("a.png,cat\n")
    words = ["--images", str(tmp_path / "my photos"), "--labels", str(tmp_path / "l.csv")]
    root = ["--data-root", str(tmp_path / "root")]
    dataset = parse(*words, *root, default="shapes_train")
    assert dataset.name == "my photos"
    assert dataset.images == tmp_path / "my photos"
    assert dataset.json == tmp_path / "root/custom/my photos.json"
    assert CocoImages(dataset.json).class_names == ["cat"]
    assert dataset.prm == tmp_path / "root/prm/my photos.pth"
    assert parse(*words, *root, "--name", "b").json == tmp_path / "root/custom/b.json"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --dataset NAME, or --images FOLDER with --json FILE or --labels PATH"),
        (["--images", "y"], "either --dataset NAME, or --images FOLDER with"),
        (["--dataset", "shapes_val", "--json", "x"], "either --dataset NAME, or --images FOLDER"),
        (["--json", "x", "--labels", "y", "--images", "z"], "either --dataset NAME"),
        (["--labels", "x.csv"], "--labels needs --images"),
        (["--labels", "x.csv", "--images", "y/shapes_val"], "name of a known data set"),
        (["--dataset", "shape"], "no data set is called shape; known: shapes_train"),
        (["--dataset", "shapes_val", "--images", "y"], "go with --json or --labels"),
        (["--json", "x.json"], "--json needs --images"),
        (["--json", "x.json", "--images", "y", "--name", "a/b"], "folder's name, got 'a/b'"),
    ],
)
def test_bad_options(words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words)
