"""The published label_assign files as clusters."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data.coco import ImageRecord
from lib.prm.clusters import ClusterStore
from lib.prm.published import clusters_from_matrix, import_label_assign
from lib.proposals.regions import encode
from lib.proposals.store import ProposalStore
from lib.provenance import Memory


def image(image_id, file_name, size=(4, 5)):
    return ImageRecord(image_id, file_name, *size, np.ones(2, np.float32))


def test_matrix_by_hand():
    # C = 2. Cluster 1 is of class 1, cluster 2 of class 0, 3 is the background.
    matrix = np.array([[0, 0, 1], [3, 0, 0], [0, 2, 0], [0, 0, 0], [0, 0, 1]], np.float32)
    clusters = clusters_from_matrix(matrix, 2)
    assert clusters.number.tolist() == [1, 3, 2, 0, 1]
    assert clusters.column.tolist() == [2, 0, 1, -1, 2]
    assert clusters.number.dtype == clusters.column.dtype == np.int64
    for kind in (np.uint8, np.int64, np.float16):
        np.testing.assert_array_equal(
            clusters_from_matrix(matrix.astype(kind), 2).number, clusters.number
        )


@given(st.integers(0, 20), st.integers(1, 6), st.integers(0, 2**32))
def test_matrix_and_back(num_proposals, num_classes, seed):
    rng = np.random.default_rng(seed)
    column_of = rng.integers(0, num_classes + 1, 5)  # the column of every cluster
    number = rng.integers(0, 6, num_proposals)
    matrix = np.zeros((num_proposals, num_classes + 1))
    for row, n in enumerate(number):
        if n:
            matrix[row, column_of[n - 1]] = n
    clusters = clusters_from_matrix(matrix, num_classes)
    np.testing.assert_array_equal(clusters.number, number)
    np.testing.assert_array_equal(clusters.column, [column_of[n - 1] if n else -1 for n in number])


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (np.zeros((3, 2)), r"shape \(3, 2\), expected \(proposals, 3\)"),
        (np.zeros(3), r"shape \(3,\)"),
        ([[0, 0.5, 0]], "no whole numbers"),
        ([[0, np.nan, 0]], "no whole numbers"),
        ([["a", "b", "c"]], "no whole numbers"),
        ([[0, -1, 0]], "negative"),
        ([[0, 0, 0], [0, 1, 2]], "proposal 1 is in more than one cluster"),
        ([[0, 1, 0], [0, 0, 1]], r"cluster 1 is in the columns \[1, 2\]"),
    ],
)
def test_matrices_that_are_none(matrix, text):
    with pytest.raises(ValueError, match=text):
        clusters_from_matrix(matrix, 2)


def test_import_by_id_with_everything_that_can_be_wrong(tmp_path):
    proposals = ProposalStore(tmp_path / "proposals")
    clusters = ClusterStore(tmp_path / "clusters")
    names = {1: "2007_000001", 2: "2007_000002", 3: "a/3", 4: "4", 5: "5", 6: "6"}
    images = [image(i, f"{name}.jpg") for i, name in names.items()]
    masks = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    for one in images[:5]:
        proposals.save(one.file_name, encode(masks))
    good = {i: np.eye(3)[[i % 3, 1, 2]] * [4, 1, 2] for i in names}
    content = {  # in another order than the images, with an image that is not in the data set
        "indexes": ["2007_000002", 99, np.int64(3), "2007_000001", 5, 6],
        "mat": [good[2], good[1], good[3], good[1], np.zeros((4, 3)), good[6]],
    }
    path = tmp_path / "label_assign.pkl"
    path.write_bytes(pickle.dumps(content))
    samples = {one.file_name: {"image_labels": [one.image_id]} for one in images}
    unused, failures = import_label_assign(path, images, 2, proposals, clusters, samples, jobs=1)
    assert unused == 1
    for i in (1, 2, 3):
        loaded = clusters.load(f"{names[i]}.jpg", 3)
        expected = clusters_from_matrix(good[i], 2)
        np.testing.assert_array_equal(loaded.number, expected.number)
        np.testing.assert_array_equal(loaded.column, expected.column)
    assert list(failures) == ["4.jpg", "5.jpg", "6.jpg"]
    assert failures["4.jpg"] == f"not among the indexes of {path}"
    assert "has a matrix of 4 proposals" in failures["5.jpg"] and "has 3" in failures["5.jpg"]
    assert "no proposals of image 6.jpg" in failures["6.jpg"]
    assert not any(clusters.has(f"{i}.jpg") for i in (4, 5, 6))


def test_imported_clusters_are_recognised_and_belong_to_their_proposals(tmp_path):
    proposals = ProposalStore(tmp_path / "proposals")
    clusters = ClusterStore(tmp_path / "clusters")
    memory = Memory(tmp_path)
    images = [image(1, "a/1.jpg"), image(2, "2.jpg"), image(3, "3.jpg")]
    names = [one.file_name for one in images]
    masks = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    for name in names:
        proposals.save(name, encode(masks))

    def samples():
        stored = proposals.stored(names, memory)
        return {name: {"proposals": stored[name].fingerprint} for name in names}

    path = tmp_path / "label_assign.pkl"
    matrix = np.diag([3, 1, 2])
    path.write_bytes(pickle.dumps({"indexes": [2, 1], "mat": [matrix, matrix]}))
    import_label_assign(path, images, 2, proposals, clusters, samples(), jobs=1)
    clusters.save("3.jpg", clusters_from_matrix(matrix, 2), {"prm": "weights"})
    assert clusters.imported(samples(), memory) == {"a/1.jpg", "2.jpg"}
    proposals.save("2.jpg", encode(masks[::-1]))
    fault = "clusters of 1 of 2 images were imported for other proposals: 2.jpg; import them again"
    with pytest.raises(ValueError, match=fault):
        clusters.imported(samples(), memory)
    proposals.save("2.jpg", encode(masks))
    assert clusters.imported(samples(), memory) == {"a/1.jpg", "2.jpg"}
    wrong = {**samples(), "2.jpg": {"image_labels": [1]}}
    assert clusters.imported(wrong, memory) == {"a/1.jpg", "2.jpg"}  # of labels it says nothing
