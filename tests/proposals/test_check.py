"""What is said of a store of proposals."""

import pickle

import numpy as np
import pytest

from lib.data.coco import ImageRecord
from lib.proposals import store as store_module
from lib.proposals.check import check_store, compare_with_published
from lib.proposals.regions import encode
from lib.proposals.store import ProposalStore

SIZE = (6, 9)


def image(image_id, name, size=SIZE):
    return ImageRecord(image_id, f"{name}.jpg", *size, np.ones(1, np.float32))


def masks(seed, count):
    out = np.random.default_rng(seed).random((count, *SIZE)) < 0.5
    out[:, 1, 2] = True
    return out


@pytest.fixture
def store(tmp_path):
    return ProposalStore(tmp_path / "store")


def test_everything_that_can_be_wrong(store, monkeypatch):
    store.save("good.jpg", encode(masks(0, 4)))
    store.save("a/twice.jpg", encode(masks(1, 5)[[0, 1, 0, 2, 1, 1, 3, 4]]))
    store.save("large.jpg", encode(masks(2, 7)))
    store.save("damaged.jpg", encode(masks(3, 3)))
    path = store.path("damaged.jpg")
    path.write_bytes(path.read_bytes()[:-40])
    holed = masks(4, 3)
    holed[1] = False
    with monkeypatch.context() as patch:  # as a file made by another program
        patch.setattr(store_module, "_content_fault", lambda _: None)
        store.save("holed.jpg", encode(holed))
    images = [image(i, n) for i, n in enumerate(["good", "a/twice", "damaged", "holed", "gone"])]
    images.append(image(9, "large", (6, 10)))
    check = check_store(store, images, jobs=1)
    assert check.counts == [4, 8, 7] and not check.usable
    assert check.missing == ["gone.jpg"]
    assert check.duplicates == {"a/twice.jpg": 3}
    assert list(check.wrong_size) == ["large.jpg"]
    assert "proposals of 6x9, the image is 6x10" in check.wrong_size["large.jpg"]
    assert list(check.faults) == ["damaged.jpg", "holed.jpg"]
    assert "truncated or damaged" in check.faults["damaged.jpg"]
    assert "1 of 3 masks are empty" in check.faults["holed.jpg"]
    assert check.num_bytes == sum(p.stat().st_size for p in store.folder.rglob("*.npz"))


def test_duplicates_alone_do_no_harm(store):
    store.save("twice.jpg", encode(masks(1, 1)[[0, 0]]))
    check = check_store(store, [image(1, "twice")], jobs=1)
    assert check.usable and check.duplicates == {"twice.jpg": 1}


def published(tmp_path, by_id, clipped):
    """A cob/*.pkl as the published system writes it, from masks, without this project's code."""
    content = {"indexes": [], "boxes": [], "masks": [], "scores": []}
    for image_id, of_image in by_id.items():
        boxes, small = [], []
        for mask in of_image:
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            crop = mask[box[1] : box[3], box[0] : box[2]]
            rows = ((np.arange(7) + 0.5) * crop.shape[0] / 7).astype(int)
            columns = ((np.arange(7) + 0.5) * crop.shape[1] / 7).astype(int)
            small.append(crop[rows][:, columns])
            limit = [SIZE[1] - 1, SIZE[0] - 1] * 2
            boxes.append(np.minimum(box, limit) if clipped else box)
        content["indexes"].append(image_id)
        content["boxes"].append(np.array(boxes, np.float32))
        content["masks"].append(np.array(small))
        content["scores"].append(np.ones(len(boxes)))
    path = tmp_path / "cob.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("clipped", [True, False])
def test_comparison_with_a_published_file(tmp_path, store, clipped):
    by_id = {i: masks(i, 3 + i) for i in range(6)}
    images = [image(i, f"{i}") for i in by_id]
    for one in images:
        store.save(one.file_name, encode(by_id[one.image_id]))
    reordered = dict(reversed(by_id.items()))
    path = published(tmp_path, reordered, clipped)
    assert compare_with_published(store, images, path, jobs=1) == (6, {})

    reordered[1] = by_id[1][[1, 0, 2, 3]]
    reordered[2] = by_id[2][:-1]
    # The boxes of the whole image, but other pixels.
    store.save("3.jpg", encode(np.ones((6, *SIZE), bool)))
    corners = np.zeros(SIZE, bool)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    reordered[3] = np.repeat(corners[None], 6, axis=0)
    del reordered[4]
    path = published(tmp_path, reordered, clipped)
    agreeing, different = compare_with_published(store, images, path, jobs=1)
    assert agreeing == 2 and sorted(different) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert different["4.jpg"] == "not in the published file"
    assert "boxes of shape (5, 4) here, (4, 4) there" in different["2.jpg"]
    assert "cells of the 7x7 masks differ" in different["3.jpg"]
