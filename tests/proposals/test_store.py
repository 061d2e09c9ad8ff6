import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from lib.proposals import store as store_module
from lib.proposals.regions import encode, proposals_from_masks
from lib.proposals.store import ProposalStore
from lib.provenance import Memory
from tests.proposals.cases import any_masks


@pytest.fixture
def store(tmp_path):
    return ProposalStore(tmp_path / "proposals")


@pytest.fixture
def masks():
    return np.random.default_rng(0).random((20, 30, 41)) < 0.3


@pytest.fixture
def saved(store, masks):
    store.save("a/image.jpg", proposals_from_masks(masks))
    return store.path("a/image.jpg")


def write(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def rewrite(path, **changes):
    """Changes some arrays of a file and gives it a valid checksum."""
    content = {**np.load(path), **changes}
    content.pop("checksum")
    np.savez_compressed(path, **content, checksum=store_module._checksum(content))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(any_masks())
def test_round_trip(store, masks):
    masks = masks[masks.any(axis=(1, 2))]
    assume(len(masks))
    before = proposals_from_masks(masks)
    store.save("x.jpg", before)
    after = store.load("x.jpg", masks.shape[1:])
    np.testing.assert_array_equal(after.regions.masks(), masks)
    for name in ("labels", "membership", "areas"):
        got, expected = getattr(after.regions, name), getattr(before.regions, name)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(after.boxes, before.boxes)
    np.testing.assert_array_equal(after.roi_masks, before.roi_masks)


def test_as_many_regions_as_pixels(store):
    masks = (np.arange(30 * 41).reshape(30, 41) >> np.arange(11)[:, None, None] & 1).astype(bool)
    store.save("x.jpg", encode(masks))
    np.testing.assert_array_equal(store.load("x.jpg").regions.masks(), masks)


def test_run_longer_than_16_bits(store):
    masks = np.ones((1, 300, 300), bool)
    store.save("x.jpg", encode(masks))
    np.testing.assert_array_equal(store.load("x.jpg").regions.masks(), masks)


def test_paths(store, saved):
    assert saved == store.folder / "a" / "image.npz" and saved.is_file()
    assert store.has("a/image.jpg") and not store.has("image.jpg")
    assert store.path("b.c.png") == store.folder / "b.c.npz"
    for bad in ("/etc/x.jpg", "../x.jpg", "a/../../x.jpg", ""):
        with pytest.raises(ValueError, match="relative to the image folder"):
            store.path(bad)


def test_small_next_to_the_masks(saved, masks):
    assert saved.stat().st_size < masks.size


def test_missing(store):
    with pytest.raises(FileNotFoundError, match="gone.npz: no proposals.*proposals.py make"):
        store.load("gone.jpg")


def test_other_size(store, saved):
    with pytest.raises(
        ValueError, match="image.npz.* 30x41, a/image.jpg is 41x30.*proposals.py make"
    ):
        store.load("a/image.jpg", (41, 30))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.9, -1])
def test_truncated(store, saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="image.npz: truncated or damaged.*proposals.py make"):
        store.load("a/image.jpg")


def test_no_bit_flip_changes_masks_unnoticed(store, saved, masks):
    data = saved.read_bytes()
    rng = np.random.default_rng(1)
    noticed = 0
    for position in rng.integers(0, 8 * len(data), 200):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        saved.write_bytes(damaged)
        try:
            got = store.load("a/image.jpg", (30, 41))
        except ValueError as error:
            assert "image.npz" in str(error)
            noticed += 1
        else:  # a bit that means nothing, such as a time stamp
            np.testing.assert_array_equal(got.regions.masks(), masks)
    assert noticed > 150


def test_content_that_does_not_fit_the_checksum(store, saved):
    content = dict(np.load(saved))
    content["membership"] = ~content["membership"]
    write(saved, **content)
    with pytest.raises(ValueError, match="image.npz: damaged, its checksum"):
        store.load("a/image.jpg")


def test_other_format_version(store, saved):
    header = np.load(saved)["header"].copy()
    header[0] = 7
    rewrite(saved, header=header)
    with pytest.raises(ValueError, match="format version 7, this program reads 1"):
        store.load("a/image.jpg")


def test_foreign_and_pickled_files(store, saved):
    write(saved, something=np.arange(3))
    with pytest.raises(ValueError, match="image.npz: truncated or damaged"):
        store.load("a/image.jpg")
    write(saved, header=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="image.npz: truncated or damaged"):
        store.load("a/image.jpg")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("text", "no array")
    saved.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="image.npz: truncated or damaged"):
        store.load("a/image.jpg")


def test_nothing_to_save(store, masks):
    with pytest.raises(ValueError, match="x.npz: not written: it holds zero proposals"):
        store.save("x.jpg", encode(masks[:0]))
    masks[3] = False
    with pytest.raises(ValueError, match="x.npz: not written: 1 of 20 masks are empty.* 3"):
        store.save("x.jpg", encode(masks))
    assert not store.has("x.jpg")


def test_zero_proposals_and_empty_masks_in_a_file(store, saved):
    content = dict(np.load(saved))
    membership = content["membership"].copy()
    membership[5] = 0
    rewrite(saved, membership=membership)
    with pytest.raises(ValueError, match="image.npz: 1 of 20 masks are empty.*proposals.py make"):
        store.load("a/image.jpg")
    header = content["header"].copy()
    header[1] = 0
    rewrite(saved, membership=membership[:0], header=header)
    with pytest.raises(ValueError, match="image.npz: it holds zero proposals.*proposals.py make"):
        store.load("a/image.jpg")


def test_the_record_says_what_it_was_made_from(store, masks, tmp_path, caplog):
    memory = Memory(tmp_path)
    store.save("a/1.png", encode(masks), {"image": "one", "settings": {"max_iou": 0.8}})
    store.save("2.png", encode(masks[:5]), {"image": "two"})
    names = ["a/1.png", "2.png", "gone.png"]
    stored = store.stored(names, memory)
    assert stored.keys() == {"a/1.png", "2.png"}
    assert stored["a/1.png"].made_from == {"image": "one", "settings": {"max_iou": 0.8}}
    assert stored["a/1.png"].fingerprint != stored["2.png"].fingerprint
    # The fingerprint is of the proposals, whatever they were made from.
    store.save("3.png", encode(masks), {"image": "three"})
    assert store.stored(["3.png"], memory)["3.png"].fingerprint == stored["a/1.png"].fingerprint

    fitting = {"a/1.png": {"image": "one"}, "2.png": {"image": None, "labels": [1]}}
    found = store.fingerprints(fitting, memory)
    assert found == {name: stored[name].fingerprint for name in fitting}
    with pytest.raises(ValueError, match=r"1 of 2 images were made from other images: 2.png; make"):
        store.fingerprints({**fitting, "2.png": {"image": "other"}}, memory)
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing: gone\.png; make"):
        store.fingerprints({**fitting, "gone.png": {}}, memory)
    assert not caplog.text
    store.path("2.png").write_bytes(b"damaged")
    assert store.stored(names, memory).keys() == {"a/1.png"}
    with pytest.raises(ValueError, match=r"1 of 2 images are damaged: 2\.png; make"):
        store.fingerprints(fitting, memory)


def test_files_of_earlier_versions_are_taken_with_a_warning(store, saved, tmp_path, caplog):
    assert "made_from" not in np.load(saved).files
    store.fingerprints({"a/image.jpg": {"image": "any"}}, Memory(tmp_path))
    assert "1 of 1 images do not say what they were made from" in caplog.text
