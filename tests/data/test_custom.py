"""Folders of images and labels as people have them."""

import json
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from lib.data import custom
from lib.data import images as image_files
from lib.data.coco import CocoImages
from lib.data.images import read_image
from lib.data.custom import prepare
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
    assert not list((own.images.parent / "root").rglob("*.json"))


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
