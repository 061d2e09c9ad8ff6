from pathlib import Path

import pytest

from lib.data.catalog import CATALOG, named_dataset


def test_everything_of_a_dataset_has_its_place():
    dataset = CATALOG["shapes_val"]
    assert dataset.json == Path("data/shapes/annotations/val.json")
    assert dataset.images == Path("data/shapes/val")
    assert dataset.proposals == Path("data/proposals/shapes_val")
    assert dataset.clusters == Path("data/clusters/shapes_val")
    assert dataset.prm == Path("data/prm/shapes_val.pth")
    assert named_dataset("shapes_val") == dataset
    assert named_dataset("shapes_val", "other").json == Path("other/shapes/annotations/val.json")


def test_the_published_names_are_there():
    published = {"voc2012trainaug", "voc2012sbdval", "coco2017train", "coco2017val", "coco2017test"}
    assert published <= set(CATALOG)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="no data set is called shape; known: shapes_train"):
        named_dataset("shape")
