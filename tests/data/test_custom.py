"""Folders of images and labels as people have them."""

import json
import os
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from lib.data import custom
from lib.data import images as image_files
from lib.data.coco import CocoImages
from lib.data.custom import ImageIndex, prepare
from lib.data.images import IMAGE_SUFFIXES, read_image
from lib.proposals.store import ProposalStore

RNG = np.random.default_rng(5)


def save(path, size=(8, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = RNG.integers(0, 256, (3, 3, 3), np.uint8)
    pixels = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def own(tmp_path):
    """Makes the data set of `tmp_path/images` and the CSV rows given."""

    def make(*rows, labels=None, name="mine"):
        if labels is None:
            labels = tmp_path / "labels.csv"
            labels.write_text("".join(f"{row}\n" for row in rows))
        target, images = prepare(tmp_path / "images", labels, name, tmp_path / "root")
        coco = CocoImages(target)
        coco.check_files(images)
        return coco, images

    make.images = tmp_path / "images"
    return make


def labels_of(coco):
    return {i.file_name: i.image_labels.astype(int).tolist() for i in coco.images}


def test_what_is_usable_stays_where_it_is(own):
    save(own.images / "a.png", (4, 6))
    save(own.images / "sub/b.jpg", (7, 5))
    save(own.images / "c.bmp")
    coco, images = own("a.png,x", "sub/b.jpg,y", "a.png,z", "c.bmp,")
    assert images == own.images
    assert labels_of(coco) == {"a.png": [1, 0, 1], "sub/b.jpg": [0, 1, 0], "c.bmp": [0, 0, 0]}
    assert [i.size for i in coco.images] == [(4, 6), (7, 5), (8, 12)]
    assert "segmentation" not in coco.path.read_text()


def test_it_is_made_once_and_again_after_a_change(own, caplog):
    save(own.images / "a.png")
    save(own.images / "b.png")
    coco, _ = own("a.png,x")
    made = coco.path.stat().st_mtime_ns
    assert own("a.png,x")[0].path.stat().st_mtime_ns == made
    assert "labels or images have changed" not in caplog.text
    assert labels_of(own("a.png,y", "b.png,x")[0]) == {"a.png": [0, 1], "b.png": [1, 0]}
    assert "labels or images have changed" in caplog.text
    made = coco.path.stat().st_mtime_ns
    os.utime(own.images / "a.png", ns=(1, 1))  # a copy with other times is the same image
    assert own("a.png,y", "b.png,x")[0].path.stat().st_mtime_ns == made
    save(own.images / "a.png", (3, 3))
    assert own("a.png,y", "b.png,x")[0].images[0].size == (3, 3)


def test_a_name_is_one_data_sets(own, tmp_path):
    save(own.images / "a.png")
    own("a.png,x")
    (tmp_path / "other.csv").write_text("a.png,x\n")
    with pytest.raises(ValueError, match=r"mine\.json was made from .*labels\.csv; give --name"):
        own(labels=tmp_path / "other.csv")
    own(labels=tmp_path / "other.csv", name="other")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_exif_orientation(own, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = own.images / f"a{suffix}"
    save(path, exif=exif.tobytes(), **({"quality": 100, "subsampling": 0} if "j" in suffix else {}))
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    save(own.images / "sub/b.png")
    coco, images = own(f"a{suffix},x", "sub/b.png,x")
    shown = read_image(images / f"a{suffix}", coco.images[0].size)
    assert (images == own.images) == (orientation == 1)
    assert np.abs(shown.astype(int) - upright).max() <= (12 if suffix == ".jpg" else 0)
    assert np.array_equal(read_image(images / "sub/b.png"), read_image(own.images / "sub/b.png"))


def test_grey_and_palette_are_ordinary(own):
    own.images.mkdir()
    grey = RNG.integers(0, 256, (5, 7), np.uint8)
    Image.fromarray(grey).save(own.images / "grey.png")
    Image.fromarray(grey).save(own.images / "grey.jpg")
    Image.fromarray(grey).convert("P").save(own.images / "palette.gif")
    (own.images / "grey.jpg").rename(own.images / "other.jpg")
    coco, images = own("grey,x", "other,x")
    assert images == own.images
    assert np.array_equal(read_image(images / "grey.png"), np.stack([grey] * 3, axis=2))


def test_alpha_16_bits_and_floats(own):
    own.images.mkdir()
    pixels = RNG.integers(0, 256, (5, 7, 4), np.uint8)
    pixels[0, 0, 3], pixels[1, 1, 3] = 0, 255
    Image.fromarray(pixels).save(own.images / "alpha.png")
    deep = RNG.integers(1000, 1400, (5, 7)).astype(np.uint16)
    deep[0, :2] = 1000, 1400
    cv2.imwrite(str(own.images / "deep.png"), deep)
    cv2.imwrite(str(own.images / "float.tif"), deep.astype(np.float32) / 1e4)
    opaque = np.dstack([pixels[..., :3], np.full((5, 7), 255, np.uint8)])
    Image.fromarray(opaque).save(own.images / "opaque.png")
    coco, images = own("alpha,x", "deep,x", "float,x", "opaque,x")
    alpha = read_image(images / "alpha.png")
    assert alpha[0, 0].tolist() == [255] * 3
    assert alpha[1, 1].tolist() == pixels[1, 1, :3].tolist()
    for name in ("deep.png", "float.tif"):
        values = read_image(images / name)
        assert values[0, :2].tolist() == [[0] * 3, [255] * 3]
        assert np.abs(values[..., 0] - (deep - 1000.0) * 255 / 400).max() <= 0.51
    assert (images / "opaque.png").is_symlink()
    assert [i.size for i in coco.images] == [(5, 7)] * 4


def test_enormous_images_are_shrunk(own, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 50)
    save(own.images / "a.jpg", (10, 20))
    coco, images = own("a,x")
    assert coco.images[0].size == (5, 10)
    assert read_image(images / "a.jpg").shape == (5, 10, 3)


def test_names_as_people_write_them(own):
    names = ["two words.jpg", "Žluťoučký kůň.png", "sub/日本.jpg", "A.JPG", "sub/deep/x.y.png"]
    for name in names:
        save(own.images / name)
    decomposed = unicodedata.normalize("NFD", "Žluťoučký kůň.png")
    rows = ["two words.jpg,a", f"{decomposed},a", "日本,a", "a.jpg,a", "sub\\deep\\x.y.png,a"]
    coco, images = own(*rows)
    assert [i.file_name for i in coco.images] == names
    store = ProposalStore(own.images.parent / "proposals")
    assert len({store.path(i.file_name) for i in coco.images}) == len(names)
    assert [read_image(images / i.file_name).shape[:2] for i in coco.images] == [(8, 12)] * 5


def test_the_same_name_in_sub_folders(own):
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg"):
        save(own.images / name)
    with pytest.raises(ValueError, match=r"meant by two names: 2\.jpg and b/2\.jpg \(b/2\.jpg\)"):
        own("a/1.jpg,x", "b/1,y", "2.jpg,x", "b/2.jpg,y")
    coco, _ = own("a/1.jpg,x", "b/1,y", "2.jpg,x", "2.jpg,y")
    assert labels_of(coco) == {"a/1.jpg": [1, 0], "b/1.jpg": [0, 1], "b/2.jpg": [1, 1]}
    with pytest.raises(ValueError, match=r"1 names may mean .*: 1\.jpg \(a/1\.jpg and b/1\.jpg\)"):
        own("1.jpg,x")
    save(own.images / "a/1.png")
    with pytest.raises(ValueError, match=r"a/1 \(a/1\.jpg and a/1\.png\); write folder and suffix"):
        own("a/1,x")
    with pytest.raises(ValueError, match="differ only in their suffix: a/1; .*rename one"):
        own("a/1.jpg,x", "a/1.png,x")


def test_a_folder_for_each_class(own):
    for name in ("cat/1.jpg", "dog/1.jpg", "dog/old/2.jpg"):
        save(own.images / name)
    coco, _ = own(labels=own.images)
    assert coco.class_names == ["cat", "dog"]
    assert labels_of(coco)["dog/old/2.jpg"] == [0, 1]


def test_a_coco_json_keeps_its_ids(own, tmp_path):
    save(own.images / "a.jpg")
    content = {
        "images": [{"id": 70, "file_name": "a.jpg", "width": 1, "height": 1}],
        "categories": [{"id": 5, "name": "x"}, {"id": 9, "name": "y"}],
        "annotations": [{"image_id": 70, "category_id": 9, "segmentation": [], "bbox": []}],
    }
    (tmp_path / "l.json").write_text(json.dumps(content))
    coco, _ = own(labels=tmp_path / "l.json")
    assert (coco.images[0].image_id, coco.images[0].size) == (70, (8, 12))
    assert (coco.category_ids, labels_of(coco)) == ([5, 9], {"a.jpg": [0, 1]})
    assert "segmentation" not in coco.path.read_text()


def test_images_without_labels_are_named(own, caplog):
    for name in ("a.jpg", "b.jpg", "sub/c.png", ".hidden.jpg"):
        save(own.images / name)
    (own.images / "notes.txt").touch()
    coco, _ = own("a.jpg,x")
    assert len(coco) == 1
    assert "2 of the 3 images in" in caplog.text
    assert "are left out: b.jpg, sub/c.png" in caplog.text


def test_labels_without_images_are_named(own):
    save(own.images / "a.jpg")
    missing = r"labels\.csv: 2 of its 3 images are not in .*images: b\.jpg, c; is it the right"
    with pytest.raises(FileNotFoundError, match=missing):
        own("a.jpg,x", "b.jpg,x", "c,y")


def test_all_unusable_images_are_told_at_once(own):
    save(own.images / "a.jpg")
    save(own.images / "cut.jpg", (60, 60))
    (own.images / "cut.jpg").write_bytes((own.images / "cut.jpg").read_bytes()[:500])
    (own.images / "text.png").write_text("hello")
    (own.images / "empty.jpg").touch()
    (own.images / "photo.heic").write_bytes(b"ftypheic")
    names = ["a.jpg", "cut.jpg", "text.png", "empty.jpg", "photo.heic"]
    with pytest.raises(ValueError, match="4 of 5 images cannot be used; replace them") as error:
        own(*(f"{name},x" for name in names))
    for words in ("cut.jpg: the image is truncated", "text.png: not an image", "the file is empty"):
        assert words in str(error.value)
    assert "photo.heic: not an image that OpenCV can read" in str(error.value)
    assert "known: .jpg" in str(error.value)
    assert not list((own.images.parent / "root/custom").rglob("*.json"))


def test_no_folder(own, tmp_path):
    with pytest.raises(FileNotFoundError, match="images: no such folder of images"):
        own("a.jpg,x")
    own.images.mkdir()
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        own(labels=tmp_path / "none.csv")


def test_an_interrupted_copy_leaves_nothing_half_made(own, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(own.images / "a.jpg", exif=exif.tobytes())
    save(own.images / "b.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(custom, "link_or_copy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            own("a,x", "b,x")
    assert not (own.images.parent / "root/custom/mine").exists()
    coco, images = own("a,x", "b,x")
    assert sorted(path.name for path in images.iterdir()) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{images}/cam1/0.jpg", "cam1/0.jpg"),  # a path into the folder is that file
        ("/home/user/images/cam1/0.jpg", "cam1/0.jpg"),
        ("/elsewhere/cam1/0.jpg", "cam1/0.jpg"),
        ("C:\\Users\\me\\images\\cam1\\0.jpg", "cam1/0.jpg"),
        ("images/cam1/0.jpg", "cam1/0.jpg"),
        ("./cam1/0", "cam1/0.jpg"),
        ("CAM1/0.JPG", "cam1/0.jpg"),
        ("cam1/../cam2/0.jpg", "cam2/0.jpg"),
        ("deep/cam1/0.jpg", "deep/cam1/0.jpg"),  # the longest common end
        ("x/deep/cam1/0.jpg", "deep/cam1/0.jpg"),
        ("cam2/0", "cam2/0.jpg"),
        ("only.jpg", "cam1/only.jpg"),
        ("{images}/only.jpg", None),  # there is none at this very place
        ("cam3/0.jpg", None),  # a folder that is written must agree
        ("cam2/only.jpg", None),
        ("{images}/cam2/only", None),
        ("am1/0.jpg", None),
        ("0.jpg", "several"),
        ("1/0.jpg", None),
    ],
)
def test_paths_in_lists(own, caplog, written, expected):
    for name in ("cam1/0.jpg", "cam2/0.jpg", "deep/cam1/0.jpg", "cam1/only.jpg"):
        save(own.images / name)
    row = f"{written.format(images=own.images)},x"
    if expected == "several":
        with pytest.raises(ValueError, match="1 names may mean several files"):
            own(row)
    elif expected is None:
        with pytest.raises(FileNotFoundError, match="1 of its 1 images are not in .* must agree"):
            own(row)
    else:
        assert list(labels_of(own(row)[0])) == [expected]
        # Leading folders that are not those of the images are told.
        assert ("found by the ends of their paths" in caplog.text) == (
            "elsewhere" in written or (written.startswith(("/home", "C:", "x/")))
        )


@pytest.mark.parametrize("mark", ["0a1b2c3d-", "0a1b2c3d__"])
def test_names_that_label_studio_has_marked(tmp_path, mark):
    index = ImageIndex(tmp_path, files=["a.jpg", "sub/b.jpg", f"{mark}c.jpg", "c.jpg"])
    assert index.find(f"images/3/{mark}a.jpg") == ["a.jpg"]
    assert index.find(f"{mark}b.jpg") == ["sub/b.jpg"]
    assert index.find(f"{mark}c.jpg") == [f"{mark}c.jpg"]  # the file's own name
    assert index.find(f"{mark}{mark}d.jpg") == index.find("0a1b2c3-a.jpg") == []


def test_a_list_of_two_folders_of_which_one_is_there(own):
    for name in ("val/0.jpg", "val/1.jpg"):
        save(own.images / name)
    rows = ("train/0.jpg,cat", "train/1.jpg,cat", "val/0.jpg,dog", "val/1.jpg,dog")
    with pytest.raises(
        FileNotFoundError, match=r"2 of its 4 images .*: train/0\.jpg, train/1\.jpg"
    ):
        own(*rows)
    own.images = own.images / "val"
    labels = own.images.parent.parent / "labels.csv"
    labels.write_text("\n".join(rows))
    with pytest.raises(
        ValueError, match=r"meant by two names: train/0\.jpg and val/0\.jpg \(0\.jpg\)"
    ):
        prepare(own.images, labels, "val", own.images.parent.parent / "root")


def test_numbers_of_images_find_names_with_leading_zeros_and_underscores(own):
    for name in ("000000000139.jpg", "2007_000032.jpg"):
        save(own.images / name)
    coco, _ = own("139,x", "2007000032,y")
    assert labels_of(coco) == {"000000000139.jpg": [1, 0], "2007_000032.jpg": [0, 1]}


def test_links_to_folders_are_followed_but_not_in_circles(own, tmp_path):
    for name in ("disk/cat/0.jpg", "disk/dog/1.jpg"):
        save(tmp_path / name)
    own.images.mkdir()
    for name in ("cat", "dog"):
        (own.images / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk/dog/up").symlink_to(own.images)
    (tmp_path / "disk/dog/self").symlink_to(tmp_path / "disk/dog")
    coco, _ = own("cat/0.jpg,x", "dog/1.jpg,y")
    assert labels_of(coco) == {"cat/0.jpg": [1, 0], "dog/1.jpg": [0, 1]}
    own.images = tmp_path / "images"
    (tmp_path / "disk/dog/up").unlink()
    coco, _ = own(labels=own.images, name="folders")
    assert labels_of(coco) == {"cat/0.jpg": [1, 0], "dog/1.jpg": [0, 1]}


def test_an_output_inside_the_folder_of_images_is_no_class(own, tmp_path):
    for name in ("images/cat/0.jpg", "images/dog/1.jpg"):
        exif = Image.Exif()
        exif[0x112] = 6  # so that there are copies below the data root
        save(tmp_path / name, exif=exif.tobytes())
    for name in ("first", "second"):
        target, _ = prepare(own.images, own.images, name, own.images / "root")
        assert CocoImages(target).class_names == ["cat", "dog"]
    (tmp_path / "l.csv").write_text("0.jpg,cat\n1.jpg,dog\n")
    target, _ = prepare(own.images, tmp_path / "l.csv", "third", own.images / "root")
    assert list(labels_of(CocoImages(target))) == ["cat/0.jpg", "dog/1.jpg"]


def test_a_run_inside_the_folder_of_images_is_no_class(own):
    for name in ("cat/0.jpg", "dog/1.jpg", "Outputs/mine/20260101/mining/x.png", "run/x.png"):
        save(own.images / name)
    for run in ("Outputs/mine/20260101", "run"):
        for name in ("environment.json", "config.yaml"):
            (own.images / run / name).touch()
    coco, _ = own(labels=own.images)
    assert coco.class_names == ["cat", "dog"]
    assert list(labels_of(coco)) == ["cat/0.jpg", "dog/1.jpg"]


def test_names_that_are_not_utf8_or_too_long_are_told_at_once(own, tmp_path, caplog):
    long = "x" * 230
    save(own.images / "a.jpg")
    save(own.images / f"{long}.jpg")
    os.rename(own.images / "a.jpg", os.fsencode(own.images) + b"/caf\xe9.jpg")
    save(own.images / "b.jpg")
    coco, _ = own("b.jpg,x")  # those without a label do no harm, and can be told
    assert "caf\\udce9.jpg" in caplog.text
    with pytest.raises(ValueError, match=r"1 images have a name .*of 234 bytes.*at most 215 bytes"):
        own("b.jpg,x", f"{long}.jpg,x")
    for name in ("cat/0.jpg", "dog/1.jpg"):
        save(tmp_path / "sorted" / name)
    os.rename(tmp_path / "sorted/dog", os.fsencode(tmp_path) + b"/sorted/d\xf6g")
    with pytest.raises(ValueError, match=r"1 images have a name .*d\\udcf6g.*not UTF-8; rename it"):
        prepare(tmp_path / "sorted", tmp_path / "sorted", "sorted", tmp_path / "root")


def test_text_ids_are_kept_beside_the_new(own, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        save(own.images / name)
    content = {
        "images": [
            {"id": "905a-11", "file_name": "a.jpg"},
            {"id": "905a-12", "file_name": "b.jpg"},
        ],
        "categories": [{"id": 0, "name": "empty"}, {"id": 1, "name": "deer"}],
        "annotations": [
            {"id": "x", "image_id": "905a-11", "category_id": 0},
            {"id": "y", "image_id": "905a-12", "category_id": 1},
        ],
    }
    (tmp_path / "l.json").write_text(json.dumps(content))
    coco, _ = own(labels=tmp_path / "l.json")
    assert [(i.image_id, i.original_id) for i in coco.images] == [(1, "905a-11"), (2, "905a-12")]
    assert coco.find(["905a-12"]) == [1]
    content["images"][1]["id"] = "905a-11"
    (tmp_path / "l.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"images\[0\] and images\[1\] have the same id, '905a-11'"
    ):
        own(labels=tmp_path / "l.json")


def test_every_suffix_of_folders_is_one_of_lists(own):
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        path = own.images / f"{'ab'[number % 2]}/{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", RNG.integers(0, 256, (5, 6, 3), np.uint8))[1])
    coco, _ = own(labels=own.images)
    assert len(coco) == len(IMAGE_SUFFIXES)
    rows = [f"{record.file_name.split('/')[1].split('.')[0]},x" for record in coco.images]
    assert len(own(*rows, name="list")[0]) == len(IMAGE_SUFFIXES)
