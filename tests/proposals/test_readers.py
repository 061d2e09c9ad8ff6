"""Proposals in the layouts they are published in, through the import into the store."""

import csv
import json
import pickle
import struct
import zlib

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from lib.data.coco import ImageRecord
from lib.proposals.importing import duplicate_masks, empty_masks, import_all
from lib.proposals.readers import READERS
from lib.proposals.regions import encode
from lib.proposals.rle import decode
from lib.proposals.store import ProposalStore

SIZE = (5, 8)


def image(image_id, file_name, size=SIZE):
    return ImageRecord(image_id, file_name, *size, np.zeros(2, np.float32))


def random_masks(seed=0, count=6, size=SIZE):
    """(count, H, W) bool, distinct and not empty."""
    rng = np.random.default_rng(seed)
    while True:
        masks = rng.random((count, *size)) < 0.4
        if len(np.unique(masks.reshape(count, -1), axis=0)) == count and masks.any((1, 2)).all():
            return masks


def cells(masks):
    out = np.empty((len(masks), 1), object)
    for i, mask in enumerate(masks):
        out[i, 0] = np.asarray(mask, np.uint8)
    return out


def rle(mask, compressed=True):
    fortran = np.asfortranarray(mask, dtype=np.uint8)
    if compressed:
        encoded = coco_mask.encode(fortran)
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = fortran.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def write_cob_voc(folder, stem, masks):
    scipy.io.savemat(folder / f"{stem}.mat", {"maskmat": cells(masks)}, do_compression=True)


def write_cob_coco(folder, stem, masks):
    scipy.io.savemat(folder / f"{stem}.mat", {"maskmat": masks.astype(np.uint8)})


def write_sam(folder, stem, masks):
    entries = [
        {"segmentation": rle(m), "area": int(m.sum()), "predicted_iou": 0.9, "bbox": [0, 0, 1, 1]}
        for m in masks
    ]
    (folder / f"{stem}.json").write_text(json.dumps(entries))


def write_sam_published(folder, stem, masks):
    content = {"image": {"image_id": 1}, "annotations": [{"segmentation": rle(m)} for m in masks]}
    (folder / f"{stem}.json").write_text(json.dumps(content))


def write_rle_list(folder, stem, masks):
    mixed = [rle(m, compressed=i % 2 == 0) for i, m in enumerate(masks)]
    (folder / f"{stem}.json").write_text(json.dumps(mixed))


def write_binary_pngs(folder, stem, masks):
    (folder / stem).mkdir(parents=True)
    for i, mask in enumerate(masks):
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / stem / f"{i}.png")
    with (folder / stem / "metadata.csv").open("w") as file:  # as Segment Anything's script does
        csv.writer(file).writerow(["id", "area"])


def write_npz(folder, stem, masks):
    np.savez_compressed(folder / f"{stem}.npz", masks=masks)


WRITERS = [
    ("cob", write_cob_voc),
    ("cob", write_cob_coco),
    ("coco-rle", write_sam),
    ("coco-rle", write_sam_published),
    ("coco-rle", write_rle_list),
    ("mask-png", write_binary_pngs),
    ("npz", write_npz),
]


def imported(source, name, tmp_path, images, **options):
    store = ProposalStore(tmp_path / "store")
    total, failures = import_all(READERS[name](source), store, images, jobs=1, **options)
    return store, total, failures


@pytest.mark.parametrize(("name", "write"), WRITERS)
@pytest.mark.parametrize("count", [1, 2, 12])
def test_every_format_gives_the_masks_back(tmp_path, name, write, count):
    source = tmp_path / "source"
    source.mkdir()
    masks = {stem: random_masks(i, count) for i, stem in enumerate(["2007_000032", "2007_000033"])}
    for stem, of_image in masks.items():
        write(source, stem, of_image)
    images = [image(int(stem.replace("_", "")), f"{stem}.jpg") for stem in reversed(masks)]
    store, total, failures = imported(source, name, tmp_path, images)
    assert not failures and (total.stored, total.empty, total.duplicates) == (2 * count, 0, 0)
    for stem, of_image in masks.items():
        stored = store.load(f"{stem}.jpg", SIZE)
        np.testing.assert_array_equal(stored.regions.masks(), of_image)  # and in this order


@pytest.mark.parametrize("sixteen_bits", [False, True])
def test_label_images(tmp_path, sixteen_bits):
    labels = np.array([[0, 7, 7], [2, 2, 300 if sixteen_bits else 255]])
    picture = Image.fromarray(labels.astype(np.uint16 if sixteen_bits else np.uint8))
    picture.save(tmp_path / "a.png")
    store, _, failures = imported(tmp_path, "label-png", tmp_path, [image(1, "a.jpg", (2, 3))])
    assert not failures
    expected = [labels == 2, labels == 7, labels == labels.max()]
    np.testing.assert_array_equal(store.load("a.jpg").regions.masks(), expected)


def test_label_images_with_a_palette_are_read_by_index(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9])  # two indices of one colour
    picture.save(tmp_path / "a.png")
    store, _, failures = imported(tmp_path, "label-png", tmp_path, [image(1, "a.jpg", (2, 2))])
    assert not failures
    masks = store.load("a.jpg").regions.masks()
    np.testing.assert_array_equal(masks, [[[0, 1], [0, 0]], [[0, 0], [1, 1]]])


def test_coloured_and_damaged_pngs(tmp_path):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colour.png")
    rng = np.random.default_rng(0)
    whole = tmp_path / "cut.png"
    Image.fromarray(rng.integers(0, 9, (50, 50), np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "text.png").write_text("no picture")
    images = [image(i, f"{name}.jpg", (2, 2)) for i, name in enumerate(["colour", "cut", "text"])]
    store, _, failures = imported(tmp_path, "label-png", tmp_path, images)
    assert "mode RGB, expected one channel" in failures["colour.jpg"]
    assert "cut.png: not a readable PNG" in failures["cut.jpg"]
    assert "text.png: not a readable PNG" in failures["text.jpg"]
    assert not store.folder.exists()


def test_coco_names_of_cob_in_their_order(tmp_path):
    reader = READERS["cob"](tmp_path)
    names = ["COCO_train2014_000000000009", "COCO_val2014_000000000009", "000000000009"]
    with pytest.raises(FileNotFoundError, match=" or ".join(f"{tmp_path}/{n}.mat" for n in names)):
        reader.find(9, "train2017/000000000009.jpg")
    for name in reversed(names):
        write_cob_coco(tmp_path, name, random_masks())
        for file_name in ("000000000009.jpg", "COCO_val2014_000000000009.jpg"):
            assert reader.find(9, file_name) == tmp_path / f"{name}.mat"
    assert reader.names("2007_000032") == ["2007_000032"]


def test_cob_files_whose_check_of_compressed_data_fails(tmp_path):
    """Some of the published files are like this: something follows the matrix in its stream."""
    masks = random_masks(3, 20)
    write_cob_voc(tmp_path, "a", masks)
    path = tmp_path / "a.mat"
    content = path.read_bytes()
    header, data = content[:128], zlib.compress(zlib.decompress(content[136:]) + bytes(64))
    path.write_bytes(header + struct.pack("<II", 15, len(data)) + data)  # 15: compressed
    with pytest.raises(ValueError, match="Did not fully consume"):
        scipy.io.loadmat(path)
    store, _, failures = imported(tmp_path, "cob", tmp_path, [image(1, "a.jpg")])
    assert not failures
    np.testing.assert_array_equal(store.load("a.jpg").regions.masks(), masks)


def test_cob_files_that_are_something_else(tmp_path):
    scipy.io.savemat(tmp_path / "other.mat", {"ucm": np.zeros((3, 3))})
    scipy.io.savemat(tmp_path / "text.mat", {"maskmat": "words"})
    uneven = cells([np.ones((5, 8)), np.ones((5, 7))])
    scipy.io.savemat(tmp_path / "uneven.mat", {"maskmat": uneven})
    write_cob_voc(tmp_path, "cut", random_masks(count=30))
    (tmp_path / "cut.mat").write_bytes((tmp_path / "cut.mat").read_bytes()[:200])
    (tmp_path / "hdf.mat").write_bytes(
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\0" * 99
    )
    (tmp_path / "nothing.mat").write_bytes(b"")
    names = ["other", "text", "uneven", "cut", "hdf", "nothing"]
    _, _, failures = imported(
        tmp_path, "cob", tmp_path, [image(i, f"{n}.jpg") for i, n in enumerate(names)]
    )
    for name, text in {
        "other": "no variable maskmat",
        "text": "expected (masks, height, width) of numbers",
        "uneven": r"mask 1 has shape (5, 7), mask 0 (5, 8)",
        "cut": "not a readable MATLAB file",
        "hdf": "MATLAB 7.3 file",
        "nothing": "not a readable MATLAB file",
    }.items():
        assert f"{tmp_path}/{name}.mat" in failures[f"{name}.jpg"]
        assert text in failures[f"{name}.jpg"], failures[f"{name}.jpg"]


@pytest.mark.parametrize("name", ["cob", "npz", "coco-rle", "mask-png"])
def test_wrong_size_empty_none_and_missing(tmp_path, name):
    write = dict(WRITERS[1:])[name]
    good = random_masks()
    turned = np.ascontiguousarray(good.transpose(0, 2, 1))
    holed = good.copy()
    holed[[1, 4]] = False
    for stem, masks in {"good": good, "turned": turned, "holed": holed}.items():
        write(tmp_path, stem, masks)
    write(tmp_path, "none", np.zeros((0, *SIZE), bool))
    write(tmp_path, "void", np.zeros((2, *SIZE), bool))
    names = ["turned", "holed", "none", "good", "gone", "void"]
    images = [image(i, f"{n}.jpg") for i, n in enumerate(names)]
    store, total, failures = imported(tmp_path, name, tmp_path, images)
    assert set(failures) == {f"{n}.jpg" for n in names} - {"good.jpg"}  # and good went on
    assert total.stored == 6
    reader = READERS[name]
    where = str(tmp_path / "turned") + reader.suffix
    assert failures["turned.jpg"] == (
        f"{where}: {reader.content} has 8x5 masks, the image is 5x8 (height x width); "
        f"{reader.remedy}"
    )
    assert "masks 1, 4 of 6 (counted from 0) are empty" in failures["holed.jpg"]
    assert "--drop-empty" in failures["holed.jpg"]
    assert "no masks" in failures["none.jpg"]
    assert "gone.jpg: no proposals at" in failures["gone.jpg"]

    again = [i for i in images if i.file_name in ("holed.jpg", "void.jpg")]
    store, total, failures = imported(tmp_path, name, tmp_path, again, drop_empty=True)
    assert (total.stored, total.empty, total.duplicates) == (4, 2, 0)
    assert list(failures) == ["void.jpg"] and "all of its 2 masks are empty" in failures["void.jpg"]
    np.testing.assert_array_equal(store.load("holed.jpg").regions.masks(), good[[0, 2, 3, 5]])


def test_duplicates_stay_unless_asked_for(tmp_path):
    masks = random_masks(count=4)[[0, 1, 0, 2, 1, 3]]
    masks = np.insert(masks, 3, False, axis=0)
    write_npz(tmp_path, "a", masks)
    images = [image(1, "a.jpg")]
    store, total, _ = imported(tmp_path, "npz", tmp_path, images, drop_empty=True)
    assert (total.stored, total.empty, total.duplicates) == (6, 1, 0)
    store, total, _ = imported(
        tmp_path, "npz", tmp_path, images, drop_empty=True, drop_duplicates=True
    )
    assert (total.stored, total.empty, total.duplicates) == (4, 1, 2)
    np.testing.assert_array_equal(store.load("a.jpg").regions.masks(), masks[[0, 1, 4, 6]])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 6), st.integers(0, 2**32))
def test_empty_and_duplicate_masks_against_a_slow_twin(count, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 2, 2)) < 0.3
    regions = encode(masks)
    empty = [i for i in range(count) if not masks[i].any()]
    duplicates = [i for i in range(count) if any((masks[i] == m).all() for m in masks[:i])]
    assert empty_masks(regions).tolist() == empty
    assert duplicate_masks(regions).tolist() == duplicates


def test_sub_folders_and_names_that_collide(tmp_path):
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    in_folder, alone = random_masks(1), random_masks(2)
    write_npz(source / "a", "1", in_folder)
    write_npz(source, "2", alone)
    images = [image(1, "a/1.jpg"), image(2, "a/2.jpg"), image(3, "b/2.jpg")]
    store, _, failures = imported(source, "npz", tmp_path, images)
    np.testing.assert_array_equal(store.load("a/1.jpg").regions.masks(), in_folder)
    np.testing.assert_array_equal(store.load("a/2.jpg").regions.masks(), alone)
    assert list(failures) == ["b/2.jpg"]
    assert "2.npz: stands for a/2.jpg as well as for b/2.jpg" in failures["b/2.jpg"]


def test_several_processes(tmp_path):
    for i in range(8):
        write_cob_voc(tmp_path, f"{i}", random_masks(i))
    images = [image(i, f"{i}.jpg") for i in range(9)]
    store = ProposalStore(tmp_path / "store")
    total, failures = import_all(READERS["cob"](tmp_path), store, images, jobs=2)
    assert total.stored == 48 and list(failures) == ["8.jpg"]
    for i in range(8):
        np.testing.assert_array_equal(store.load(f"{i}.jpg").regions.masks(), random_masks(i))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1))
def test_rle_is_decoded_as_by_pycocotools(height, width, seed, inside):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < inside
    if seed % 2:  # long runs
        mask = np.sort(mask, axis=0)
    for compressed in (True, False):
        np.testing.assert_array_equal(decode(rle(mask, compressed)), mask)


def test_rle_by_hand():
    # Down the columns: 2 outside, 3 inside, 1 outside.
    expected = [[0, 1, 1], [0, 1, 0]]
    np.testing.assert_array_equal(decode({"size": [2, 3], "counts": [2, 3, 1]}), expected)
    np.testing.assert_array_equal(decode({"size": [2, 3], "counts": "231"}), expected)
    assert decode({"size": [1, 2], "counts": [0, 2]}).all()
    large = np.zeros((3000, 4000), bool)
    large[100:, 5:3000] = True
    np.testing.assert_array_equal(decode(rle(large)), large)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"size": [2, 3], "counts": [2, 3]}, "the runs cover 5 pixels, the image has 6"),
        ({"size": [2, 3], "counts": [2, 5, -1]}, "counts hold -1"),
        ({"size": [2, 3], "counts": "23"}, "the runs cover 5 pixels.* cut short"),
        ({"size": [2, 3], "counts": ""}, "the runs cover 0 pixels"),
        ({"size": [2, 3], "counts": "2 1"}, "damaged"),
        ({"size": [2, 3], "counts": "23Q"}, "damaged"),
        ({"size": [2, 3], "counts": "ooooooooooo0"}, "damaged"),
        ({"size": [2, 3], "counts": "é"}, "damaged"),
        ({"size": [2, 3], "counts": 6}, "counts are a int"),
        ({"size": [2, 3], "counts": [2.5, 3.5]}, "counts hold 2.5"),
        ({"size": [2, -3], "counts": [6]}, r"size is \[2, -3\]"),
        ({"size": [6], "counts": [6]}, r"size is \[6\]"),
        ({"counts": [6]}, "neither an RLE"),
        ([[1, 2, 3, 4, 5, 6]], "only where the size of the image is known"),
    ],
)
def test_rle_that_is_none(tmp_path, entry, text):
    (tmp_path / "a.json").write_text(json.dumps([{"size": [1, 1], "counts": [1]}, entry]))
    with pytest.raises(ValueError, match=rf"a\.json: entry 1: .*{text}"):
        READERS["coco-rle"].read(tmp_path / "a.json")


def test_json_of_another_form(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"a\.json: expected a list of RLEs"):
        READERS["coco-rle"].read(path)
    path.write_text('[{"size"')
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
        READERS["coco-rle"].read(path)


def test_npz_of_another_form(tmp_path):
    np.savez(tmp_path / "key.npz", mask=np.ones((1, 2, 2)), other=np.ones((1, 2, 2)))
    np.savez(tmp_path / "flat.npz", masks=np.ones((2, 2)))
    np.savez(tmp_path / "objects.npz", masks=np.array([None], object))
    np.savez(tmp_path / "cut.npz", masks=np.ones((1, 99, 99)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    read = READERS["npz"].read
    for name, text in [
        ("key", r"no array `masks` in it \(it has mask, other\)"),
        ("flat", r"shape \(2, 2\)"),
        ("objects", "allow_pickle"),
        ("cut", "make the file again"),
    ]:
        with pytest.raises(ValueError, match=rf"{name}\.npz: .*{text}"):
            read(tmp_path / f"{name}.npz")


def test_a_file_where_a_folder_of_pngs_is_expected(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="expected a folder of PNGs"):
        READERS["mask-png"].read(tmp_path / "a")


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_source_that_is_not_there(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        READERS[name](tmp_path / "nowhere")


def write_published(path, indexes, masks, **more):
    """cob/*.pkl: parallel lists over the images of a split."""
    path.write_bytes(pickle.dumps({"indexes": indexes, "masks": masks, **more}))


@pytest.mark.parametrize("jobs", [1, 2])
def test_published_pickle_by_id_and_not_by_position(tmp_path, jobs):
    masks = [random_masks(i, 3 + i) for i in range(4)]
    as_objects = np.empty(len(masks[1]), object)
    as_objects[:] = list(masks[1].astype(np.uint8))
    forms = [masks[0], as_objects, [rle(m) for m in masks[2]], list(masks[3])]
    path = tmp_path / "voc.pkl"
    write_published(path, ["2007_000002", 3, "1", np.int64(2007000000)], forms)
    images = [
        image(2007000000, "2007_000000.jpg"),
        image(1, "x.jpg"),
        image(2007000002, "2007_000002.jpg"),
        image(3, "y.jpg"),
        image(4, "z.jpg"),
    ]
    store = ProposalStore(tmp_path / "store")
    total, failures = import_all(READERS["pickle"](path), store, images, jobs=jobs)
    for name, expected in {
        "2007_000000.jpg": masks[3],
        "x.jpg": masks[2],
        "2007_000002.jpg": masks[0],
        "y.jpg": masks[1],
    }.items():
        np.testing.assert_array_equal(store.load(name).regions.masks(), expected)
    assert list(failures) == ["z.jpg"]
    assert "neither 4 nor z is among the 4 indexes" in failures["z.jpg"]


def test_published_pickle_of_7x7_masks_is_refused_with_the_remedy(tmp_path):
    write_published(tmp_path / "a.pkl", [1], [np.ones((5, 7, 7), bool)])
    _, _, failures = imported(tmp_path / "a.pkl", "pickle", tmp_path, [image(1, "a.jpg")])
    assert "import the COB .mat files (--format cob)" in failures["a.jpg"]


def results_of(masks, **fields):
    return [{**fields, "category_id": 1, "score": 0.5, "segmentation": rle(m)} for m in masks]


@pytest.mark.parametrize("form", ["results", "annotations"])
def test_one_result_file_of_all_images(tmp_path, form):
    masks = [random_masks(i, 3 + i) for i in range(4)]
    entries = [
        *results_of(masks[0], image_id=7),
        *results_of(masks[1], image_id="8"),
        *results_of(masks[2], image_id="905a-11"),
        *results_of(masks[3], image_id="sub/d.jpg"),
    ]
    order = np.random.default_rng(0).permutation(len(entries))
    by_image = [entries[i] for i in sorted(order, key=lambda i: i % 2)]  # mixed, their order kept
    path = tmp_path / "all.json"
    path.write_text(json.dumps(by_image if form == "results" else {"annotations": by_image}))
    records = [
        image(7.0, "a.jpg"),
        image(8, "b.jpg"),
        ImageRecord(3, "c.jpg", *SIZE, np.zeros(2), "905a-11"),
        image(4, "sub/d.jpg"),
        image(5, "e.jpg"),
    ]
    store, total, failures = imported(path, "coco-rle", tmp_path, records)
    assert list(failures) == ["e.jpg"] and total.stored == sum(map(len, masks))
    assert "none of the 4 image ids in" in failures["e.jpg"] and "(5)" in failures["e.jpg"]
    for record, expected in zip(records, masks, strict=False):
        stored = store.load(record.file_name).regions.masks()
        assert {m.tobytes() for m in stored} == {m.tobytes() for m in expected}


def test_one_file_whose_entries_name_no_image(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(results_of(random_masks())))
    with pytest.raises(ValueError, match=r"a\.json: entry 0 has no image_id; .*give their folder"):
        READERS["coco-rle"](tmp_path / "a.json")


@pytest.mark.parametrize("name", sorted(READERS))
def test_files_are_told_from_folders(tmp_path, name):
    (tmp_path / "a.bin").write_bytes(b"")
    if name == "pickle":
        with pytest.raises(ValueError, match="a folder, expected the one pickle of all images"):
            READERS[name](tmp_path)
    elif name != "coco-rle":
        with pytest.raises(ValueError, match=r"a\.bin: a file, expected the folder in which every"):
            READERS[name](tmp_path / "a.bin")


def test_other_forms_of_arrays(tmp_path):
    masks = random_masks()
    np.savez(tmp_path / "a.npz", masks)  # arr_0
    np.save(tmp_path / "b.npy", masks)
    sam = [{"segmentation": m, "area": m.sum(), "bbox": [0, 0, 1, 1]} for m in masks]
    np.save(tmp_path / "c.npy", np.array(sam, object), allow_pickle=True)
    sam = [{"segmentation": rle(m), "area": 3} for m in masks]
    np.save(tmp_path / "d.npy", np.array(sam, object), allow_pickle=True)
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    store, _, failures = imported(tmp_path, "npz", tmp_path, [image(1, name) for name in names])
    assert not failures
    for name in names:
        np.testing.assert_array_equal(store.load(name).regions.masks(), masks)


def test_numbers_as_floats_polygons_and_names_with_the_suffix_of_the_image(tmp_path):
    masks = random_masks()
    floats = [rle(m, compressed=i % 2 == 0) for i, m in enumerate(masks)]
    for entry in floats:
        entry["size"] = [float(n) for n in entry["size"]]
        if isinstance(entry["counts"], list):
            entry["counts"] = [float(n) for n in entry["counts"]]
    (tmp_path / "a.json").write_text(json.dumps(floats))
    (tmp_path / "b.jpg.json").write_text(json.dumps([rle(m) for m in masks]))
    polygon = {"segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}
    (tmp_path / "c.json").write_text(json.dumps([polygon]))
    names = ["a.jpg", "b.jpg", "c.jpg"]
    store, _, failures = imported(
        tmp_path, "coco-rle", tmp_path, [image(1, name) for name in names]
    )
    assert not failures
    np.testing.assert_array_equal(store.load("a.jpg").regions.masks(), masks)
    np.testing.assert_array_equal(store.load("b.jpg").regions.masks(), masks)
    (drawn,) = store.load("c.jpg").regions.masks()
    assert drawn[1:4, 1:5].all() and drawn.sum() == 12


def test_a_mask_of_another_size_ends_the_reading(tmp_path):
    """So that a thousand masks of a wrong size are not drawn before it is noticed."""
    huge = {"size": [2**14, 2**14], "counts": [2**28]}
    (tmp_path / "a.json").write_text(json.dumps([huge] * 1000))
    _, _, failures = imported(tmp_path, "coco-rle", tmp_path, [image(1, "a.jpg")])
    assert "has 16384x16384 masks, the image is 5x8" in failures["a.jpg"]
