"""Recall of stored proposals over a data set."""

import numpy as np
import pytest

from lib.evaluation.proposal_recall import find_objects
from lib.proposals.regions import encode
from lib.proposals.rle import mask_to_rle
from lib.proposals.store import ProposalStore


def bar(left, right):
    """A (2, 10) mask of some columns."""
    mask = np.zeros((2, 10), bool)
    mask[:, left:right] = True
    return mask


@pytest.fixture
def data(tmp_path):
    store = ProposalStore(tmp_path)
    store.save("a.jpg", encode(np.stack([bar(0, 1), bar(0, 4), bar(5, 10)])))
    store.save("b.jpg", encode(np.stack([bar(2, 4)])))
    objects = [("a", bar(0, 5), 0), ("a", bar(6, 10), 0), ("b", bar(2, 4), 0), ("a", bar(0, 9), 1)]
    objects.append(("c", bar(1, 2), 0))
    ids = {"a": 7, "b": 3, "c": 5, "d": 9}
    annotations = [
        {
            "image_id": ids[name],
            "segmentation": mask_to_rle(mask),
            "area": int(mask.sum()),
            "iscrowd": crowd,
        }
        for name, mask, crowd in objects
    ]
    images = [
        {"id": i, "file_name": f"{name}.jpg", "height": 2, "width": 10} for name, i in ids.items()
    ]
    return store, {"images": images, "annotations": annotations}


def test_by_hand(data):
    found = find_objects(*data, counts=[1, 2, 9], leave_out=["c.jpg"], jobs=1)
    assert found.areas.tolist() == [10, 8, 4]  # without the crowd; image d has no objects
    np.testing.assert_allclose(found.best, [[0.2, 0, 1], [0.8, 0, 1], [0.8, 0.8, 1]])
    assert found.num_proposals == [3, 1] and not found.failures


def test_nothing_to_measure(data):
    store, content = data
    found = find_objects(store, {**content, "annotations": []}, [1, 2], jobs=1)
    assert found.best.shape == (2, 0) and found.areas.shape == (0,)


def test_images_without_proposals_are_named(data):
    found = find_objects(*data, counts=[1], jobs=1)
    assert found.areas.tolist() == [10, 8, 4]
    assert list(found.failures) == ["c.jpg"]
    assert "c.npz: no proposals of image c.jpg" in found.failures["c.jpg"]
