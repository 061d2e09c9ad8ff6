import io

import numpy as np
import pytest

from lib.prm.clusters import ClusterStore, agpl_clusters
from lib.prm.peaks import Peaks
from lib.proposals.regions import encode
from lib.provenance import Memory
from lib.structures import Clusters


def points(rows: list[tuple[int, int, int]], size: tuple[int, int]) -> Peaks:
    """Peaks of (class, y, x)."""
    class_idx, y, x = np.array(rows, np.int64).reshape(-1, 3).T
    k = len(rows)
    return Peaks(size, class_idx, y, x, np.ones(k, np.float32), np.zeros(k, bool))


def slow_agpl(masks: np.ndarray, peaks: Peaks) -> tuple[np.ndarray, np.ndarray]:
    """AGPL with pixels, one proposal at a time, from the specification."""
    num_proposals, height, width = masks.shape
    number, column = [0] * num_proposals, [-1] * num_proposals
    candidates = set()
    for k in range(len(peaks)):
        y = int(np.floor(peaks.y[k] * height / peaks.size[0]))
        x = int(np.floor(peaks.x[k] * width / peaks.size[1]))
        covering = [mask for mask in masks if mask[y, x]]
        if not covering:
            continue
        joint = np.mean(covering, axis=0) > 0.7
        for p, mask in enumerate(masks):
            iou = (mask & joint).sum() / max((mask | joint).sum(), 1)
            if iou > 0.5:
                number[p], column[p] = k + 1, int(peaks.class_idx[k]) + 1
            elif iou > 0:
                candidates.add(p)
    for p in candidates:
        if number[p] == 0:
            number[p], column[p] = len(peaks) + 1, 0
    return np.array(number, np.int64), np.array(column, np.int64)


def row(*ranges: tuple[int, int], width: int = 10) -> np.ndarray:
    """A mask of one row that is True in the ranges."""
    mask = np.zeros((1, width), bool)
    for start, stop in ranges:
        mask[0, start:stop] = True
    return mask


def test_by_hand():
    masks = np.stack(
        [
            row((0, 4)),  # joins the first point
            row((0, 5)),  # the same
            row((0, 10)),  # covers both points; touches, IoU 4/10 and 3/10: background
            row((7, 10)),  # joins the second point
            row((5, 6)),  # touches neither: in no cluster
        ]
    )
    clusters = agpl_clusters(encode(masks), points([(4, 0, 1), (2, 0, 8)], (1, 10)))
    # Point 1: covered by 0, 1, 2; their mean is 1 on 0..3 and 2/3 on 4 -> 0..3.
    # Point 2: covered by 2, 3; the mean is above 0.7 only where both are -> 7..9.
    assert clusters.number.tolist() == [1, 1, 3, 2, 0]
    assert clusters.column.tolist() == [5, 5, 0, 3, -1]


def test_a_later_point_takes_proposals_over():
    masks = np.stack([row((0, 6)), row((8, 10))])
    clusters = agpl_clusters(encode(masks), points([(0, 0, 1), (1, 0, 2)], (1, 10)))
    assert clusters.number.tolist() == [2, 0]
    assert clusters.column.tolist() == [2, -1]


def test_thresholds_are_not_reached_by_equality():
    # Ten proposals cover the point, seven of them pixel 1 too: the mean there is exactly 0.7.
    masks = np.stack([row((0, 2))] * 7 + [row((0, 1))] * 3)
    clusters = agpl_clusters(encode(masks), points([(0, 0, 0)], (1, 10)))
    # So the joint mask is pixel 0 alone and the IoU of the seven is exactly 0.5: background.
    assert clusters.number.tolist() == [2] * 7 + [1] * 3
    assert clusters.column.tolist() == [0] * 7 + [1] * 3


@pytest.mark.filterwarnings("error")
def test_a_point_nobody_covers_keeps_its_number():
    masks = np.stack([row((0, 4)), row((0, 10))])
    masks[1, 0, 9] = False
    clusters = agpl_clusters(encode(masks), points([(0, 0, 9), (1, 0, 1)], (1, 10)))
    assert clusters.number.tolist() == [2, 3]
    assert clusters.column.tolist() == [2, 0]


def test_no_point_and_no_proposal():
    masks = np.stack([row((0, 4)), row((0, 10))])
    clusters = agpl_clusters(encode(masks), points([], (1, 10)))
    assert clusters.number.tolist() == [0, 0] and clusters.column.tolist() == [-1, -1]
    nothing = agpl_clusters(encode(np.zeros((0, 3, 5), bool)), points([(0, 1, 1)], (3, 5)))
    assert len(nothing.number) == len(nothing.column) == 0


def test_points_are_scaled_down_to_the_mask():
    masks = np.stack([row((3, 4)), row((4, 5))])
    # 55 of 112 -> 4.91 of 10: pixel 4, not 5; and the last of 112 is the last of 10.
    clusters = agpl_clusters(encode(masks), points([(0, 111, 55)], (112, 112)))
    assert clusters.number.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_regions_give_what_pixels_give(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 30, size=2)
    masks = np.zeros((rng.integers(1, 40), height, width), bool)
    for mask in masks:
        y, x = rng.integers(height), rng.integers(width)
        mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = True
    size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    rows = [
        (int(rng.integers(5)), int(rng.integers(size[0])), int(rng.integers(size[1])))
        for _ in range(rng.integers(1, 9))
    ]
    peaks = points(rows, size)
    clusters = agpl_clusters(encode(masks), peaks)
    number, column = slow_agpl(masks, peaks)
    np.testing.assert_array_equal(clusters.number, number)
    np.testing.assert_array_equal(clusters.column, column)

    order = rng.permutation(len(masks))
    shuffled = agpl_clusters(encode(masks[order]), peaks)
    np.testing.assert_array_equal(shuffled.number, number[order])


@pytest.fixture
def stored(tmp_path):
    store = ClusterStore(tmp_path)
    clusters = Clusters(number=np.array([1, 0, 3]), column=np.array([4, -1, 0]))
    store.save("a/picture.jpg", clusters, made_from={"prm": "weights"})
    return store, clusters


def test_store_gives_back_what_was_stored(stored, tmp_path):
    store, clusters = stored
    assert store.path("a/picture.jpg") == tmp_path / "a" / "picture.npz"
    assert store.has("a/picture.jpg") and not store.has("picture.jpg")
    read = store.load("a/picture.jpg", num_proposals=3)
    assert read.number.dtype == read.column.dtype == np.int64
    np.testing.assert_array_equal(read.number, clusters.number)
    np.testing.assert_array_equal(read.column, clusters.column)
    found = store.stored(["a/picture.jpg", "picture.jpg"], Memory(tmp_path / "root"))
    assert found.keys() == {"a/picture.jpg"}
    assert found["a/picture.jpg"].made_from == {"prm": "weights"}
    empty = Clusters(number=np.zeros(0, np.int64), column=np.zeros(0, np.int64))
    store.save("b.png", empty)
    assert len(store.load("b.png", 0).number) == 0


def test_store_names_file_and_remedy(stored):
    store, _ = stored
    with pytest.raises(FileNotFoundError, match=r"b\.npz.*b\.jpg.*prm\.py clusters"):
        store.load("b.jpg", 3)
    with pytest.raises(
        ValueError, match=r"picture\.npz: clusters of 3 .* has 5; .*prm.py clusters"
    ):
        store.load("a/picture.jpg", 5)
    for name in ("../a.jpg", "/a.jpg", ""):
        with pytest.raises(ValueError, match="relative"):
            store.load(name, 3)


def test_store_notices_damage(stored, tmp_path):
    store, _ = stored
    path = store.path("a/picture.jpg")
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"picture\.npz.*prm\.py clusters"):
            store.load("a/picture.jpg", 3)
        assert not store.stored(["a/picture.jpg"], Memory(tmp_path / "root"))
    with np.load(io.BytesIO(whole)) as archive:
        content = dict(archive)
    content["number"] = content["number"] + 1
    np.savez(path, **content)
    with pytest.raises(ValueError, match="checksum"):
        store.load("a/picture.jpg", 3)
    content["header"] = np.array([3, 3])
    np.savez(path, **content)
    with pytest.raises(ValueError, match="version 3, this program reads 2"):
        store.load("a/picture.jpg", 3)


def test_clusters_of_an_earlier_version_are_known_for_what_they_are(stored, tmp_path):
    store, _ = stored
    arrays = {"header": np.array([1, 3]), "number": np.zeros(3), "column": np.zeros(3)}
    names = {
        "made.png": "0123abcd",
        "imported.png": "imported from label_assign.pkl for proposals x",
    }
    for name, text in names.items():
        checksum = np.zeros(16, np.uint8)
        np.savez_compressed(store.path(name), **arrays, made_from=np.array(text), checksum=checksum)
    memory = Memory(tmp_path / "root")
    wanted = {name: {"prm": "weights"} for name in names}
    assert store.imported(wanted, memory) == {"imported.png"}
    assert store.out_of_date(wanted, memory) == ["made.png"]
    with pytest.raises(ValueError, match="version 1, this program reads 2"):
        store.load("imported.png", 3)
