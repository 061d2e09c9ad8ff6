"""Every row of the table in docs/CUSTOM.md, tried: what is read, told, copied and refused."""

import json
import os
import re
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from lib.data.coco import CocoImages, read_coco
from lib.data.custom import prepare
from lib.data.images import IMAGE_SUFFIXES, read_image
from lib.proposals import rle
from lib.proposals.importing import import_all
from lib.proposals.readers import READERS
from lib.proposals.store import ProposalStore
from tests.docs.documents import ROOT

TEXT = (ROOT / "docs/CUSTOM.md").read_text()
TABLE = TEXT[TEXT.index("| what you have | what happens |") :].split("\n\n")[0]
ROWS = [
    tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
    for line in TABLE.splitlines()[2:]
]
TOO_FEW = ("classes of fewer than", "in every one of", "there is only one class", "in no image")
"""What is told of every data set as small as these, and is no part of the row."""


class Trial:
    """A folder of images with labels, in which everything but what a row is about is sound."""

    def __init__(self, folder):
        self.folder, self.images = folder, folder / "images"
        self.labels = folder / "labels.csv"
        self.number = 0

    def image(self, name="a.jpg", pixels=None, folder=None, **options):
        path = (folder or self.images) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.arange(240, dtype=np.uint8).reshape(8, 10, 3) if pixels is None else pixels
        Image.fromarray(pixels).save(path, **options)
        return path

    def list(self, text, name="labels.csv", images=("a.jpg", "b.jpg")):
        """Prepares the images with a list; returns the names of the classes of each."""
        for image in images:
            self.image(image)
        self.labels = self.folder / name
        if text is not None:
            self.labels.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.prepare()

    def prepare(self, labels=None):
        self.number += 1
        name, root = f"set{self.number}", self.folder / "root"
        json_, images = prepare(self.images, labels or self.labels, name, root)
        self.copied = images != self.images
        coco = CocoImages(json_)
        coco.check_files(images)
        for record in coco.images:
            read_image(images / record.file_name, record.size)
        return {
            i.file_name: tuple(coco.class_names[c] for c in i.image_labels.nonzero()[0])
            for i in coco.images
        }

    def json(self, masks=False, **changes):
        """Reads a COCO json with the changes, by --json and with its masks."""
        content = {
            "images": [
                {"id": n, "file_name": f"{n}.jpg", "height": 8, "width": 10} for n in (1, 2)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"id": n, "image_id": n, "category_id": n, "segmentation": [[0, 0, 4, 0, 4, 4]]}
                for n in (1, 2)
            ],
        }
        for key, entry in changes.items():
            where, number = key.split("_")
            content[where][int(number)] |= entry
        path = self.folder / "set.json"
        path.write_text(json.dumps(content))
        coco = CocoImages(path)
        assert len(coco) == 2 and read_coco(path, masks=True)["annotations"]
        return coco

    def sized(self, size):
        """Reads an image that EXIF turns from 8x10 to 10x8, with the size that a json says."""
        exif = Image.Exif()
        exif[0x112] = 6
        path = self.image(exif=exif.tobytes())
        assert read_image(path, size).shape[:2] == size

    def proposals(self, format_, source, size=(8, 10)):
        coco = self.json()
        store = ProposalStore(self.folder / "proposals")
        _, failures = import_all(READERS[format_](source), store, coco.images, jobs=1)
        if failures:
            raise ValueError(failures)


MASK = np.eye(8, 10, dtype=bool)
RLE = {"segmentation": rle.mask_to_rle(MASK)}


def turned(trial):
    exif = Image.Exif()
    exif[0x112] = 6
    for suffix in (".jpg", ".png", ".tif"):
        trial.image(f"{suffix[1:]}{suffix}", exif=exif)
    trial.list("jpg,x\npng,x\ntif,y\n", images=())


def deep(trial):
    trial.image("a.png", np.arange(80, dtype=np.uint16).reshape(8, 10))
    trial.list("a,x\n", images=())


def transparent(trial):
    trial.image("a.png", np.full((8, 10, 4), 100, np.uint8))
    rgba = np.full((8, 10, 4), 9000, np.uint16)
    rgba[:4] = 10000
    cv2.imwrite(str(trial.images / "b.png"), rgba)
    trial.list("a,x\nb,y\n", images=())


def ordinary(trial):
    trial.images.mkdir()
    for mode, suffix in (("L", "png"), ("P", "gif"), ("CMYK", "jpg")):
        Image.new(mode, (10, 8), 7 if mode != "CMYK" else (7, 7, 7, 7)).save(
            trial.images / f"{mode}.{suffix}"
        )
    trial.list("L,x\nP,y\nCMYK,y\n", images=())


def suffixes(trial):
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        trial.image("a.png").rename(trial.images / f"{number}{suffix}")
    trial.list("".join(f"{n},{n % 2}\n" for n in range(len(IMAGE_SUFFIXES))), images=())


def damaged(trial):
    whole = trial.image("a.jpg", np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    whole.write_bytes(whole.read_bytes()[:900])
    for name in ("empty.png", "photo.heic"):
        (trial.images / name).write_bytes(b"" if name == "empty.png" else b"ftypheic")
    with pytest.raises(ValueError, match="3 of 3 images cannot be used") as error:
        trial.list("a,x\nempty,x\nphoto,x\n", images=())
    raise error.value


def folders(trial, *names, **links):
    for name in names:
        trial.image(name)
    for link, target in links.items():
        (trial.images / link.replace("__", "/")).symlink_to(target)
    return trial.prepare(trial.images)


def result_file(trial):
    entries = [{"image_id": n, "score": 0.5, **RLE} for n in (1, 2)]
    (trial.folder / "all.json").write_text(json.dumps(entries))
    trial.proposals("coco-rle", trial.folder / "all.json")


def arrays(trial):
    source = trial.folder / "arrays"
    source.mkdir()
    np.savez(source / "1.npz", MASK[None])
    np.save(source / "2.npy", MASK[None])
    trial.proposals("npz", source)


def other_masks(trial):
    source = trial.folder / "masks"
    source.mkdir()
    runs = rle.uncompressed(RLE["segmentation"])
    floats = {key: [float(n) for n in value] for key, value in runs.items()}
    (source / "1.json").write_text(json.dumps([floats, {"segmentation": [[0, 0, 4, 0, 4, 4]]}]))
    (source / "2.jpg.json").write_text(json.dumps([RLE]))
    trial.proposals("coco-rle", source)


def file_for_folder(trial):
    (trial.folder / "a.npz").write_bytes(b"")
    trial.proposals("npz", trial.folder / "a.npz")


def npy(trial):
    np.save(trial.folder / "l.npy", np.zeros((3, 3)))
    trial.list(None, "l.npy")


def linked(trial):
    trial.image("0.jpg", folder=trial.folder / "disk/cat")
    trial.image("dog/1.jpg")
    folders(trial, cat=trial.folder / "disk/cat", dog__round=trial.images / "dog")


def output_inside(trial):
    folders(trial, "cat/0.jpg", "dog/1.jpg")
    os.rename(trial.folder / "root", trial.images / "root")
    trial.image("root/custom/x.jpg")
    json_, _ = prepare(trial.images, trial.images, "again", trial.images / "root")
    assert CocoImages(json_).class_names == ["cat", "dog"]


def accents(trial):
    trial.image(unicodedata.normalize("NFD", "é.jpg"))
    trial.list("é.jpg,x\n", images=())
    coco = trial.json(images_0={"file_name": "é.jpg"})
    coco.images = coco.images[:1]
    coco.check_files(trial.images)


def names_of_bytes(trial):
    trial.image("0.jpg", folder=trial.images / ("x" * 216))
    folders(trial)


def enormous(trial, monkeypatch):
    monkeypatch.setattr("lib.data.images.MAX_PIXELS", 50)
    trial.list("a.jpg,x\n", images=("a.jpg",))


def both(trial, classes):
    """A list of 40 images, and which of them show what."""
    names = [f"{n}.jpg" for n in range(40)]
    rows = "".join(f"{name},{c}\n" for n, name in enumerate(names) for c in classes(n))
    trial.list(rows, images=names)
    return True  # what is told of small data sets is what this is about


def expect(trial, text, expected, **options):
    assert trial.list(text, **options) == expected


AB = {"a.jpg": ("cat",), "b.jpg": ("dog",)}
BOTH = {"a.jpg": ("cat", "dog"), "b.jpg": ("dog",)}
PLAIN = "a.jpg,cat\nb.jpg,dog\n"
TRIALS = {
    "a header by other names": lambda t: [
        expect(t, f"{head}\n{PLAIN}", AB)
        for head in ("filename,class", "image_id,species", "path,tags")
    ],
    "other columns": lambda t: expect(t, "file,label,w\na.jpg,cat,1\nb.jpg,dog,2\n", AB),
    "semicolons or tabs": lambda t: [
        expect(t, text, AB)
        for text in (
            PLAIN.replace(",", ";"),
            PLAIN.replace(",", "\t"),
            "sep=;\n" + PLAIN.replace(",", ";"),
            ",file,label\n0,a.jpg,cat\n1,b.jpg,dog\n",
        )
    ],
    "a column of 0 and 1": lambda t: [
        expect(t, "file,cat,dog\na.jpg,1,0\nb.jpg,0,1\n", AB),
        expect(t, "a.jpg,1,0\nb.jpg,0,1\n", {"a.jpg": ("class 0",), "b.jpg": ("class 1",)}),
    ],
    "several labels in a cell": lambda t: [
        expect(t, f"file,label\na.jpg,{cell}\nb.jpg,dog\n", BOTH)
        for cell in ('"cat,dog"', "cat|dog", "cat;dog", "\"['cat', 'dog']\"")
    ],
    "a label with a comma or a space": lambda t: expect(
        t,
        'a.jpg,"tench, big"\nb.jpg,polar bear\n',
        {"a.jpg": ("tench, big",), "b.jpg": ("polar bear",)},
    ),
    "a comma or a space that may": lambda t: t.list('a.jpg,"bear, brown"\nb.jpg,"bear, black"\n'),
    "labels that differ only in case": lambda t: t.list("a.jpg,cat\nb.jpg,Cat\n"),
    "text in UTF-8": lambda t: [expect(t, PLAIN.encode(e), AB) for e in ("utf-8", "utf-16")],
    "text in an encoding without": lambda t: t.list("a.jpg,cañon\n".encode("cp1252")),
    "ids in a `.txt`": lambda t: expect(
        t,
        "a.jpg 0 0 1\nb.jpg 0 1 0\n",
        {"a.jpg": ("class 2",), "b.jpg": ("class 1",)},
        name="l.txt",
    ),
    "the same id twice": lambda t: t.list("a.jpg 3 3\n", name="l.txt"),
    "a `.npy` that holds": npy,
    "a name without suffix": lambda t: t.list(
        "A,x\nsub\\c,y\nd.jpg,y\n", images=("a.jpg", "sub/c.jpg", "sub/d.jpg")
    ),
    "a path into the folder": lambda t: t.list(f"{t.images}/a.jpg,x\nimages/b.jpg,y\n"),
    "a path on another machine": lambda t: t.list("/home/me/set/a.jpg,x\n", images=("a.jpg",)),
    "a folder in the path": lambda t: t.list("train/a.jpg,x\n", images=("val/a.jpg",)),
    "a name that may be several": lambda t: t.list("a,x\n", images=("1/a.jpg", "2/a.jpg")),
    "two names that end": lambda t: t.list("a.jpg,x\n/set/a.jpg,y\n"),
    "an image that is listed twice": lambda t: expect(t, "a.jpg,cat\nb.jpg,dog\na.jpg,dog\n", BOTH),
    "a name in the labels without": lambda t: t.list(PLAIN, images=("a.jpg",)),
    "an image without an entry": lambda t: t.list("a.jpg,x\n"),
    "accents": accents,
    "a name that is not UTF-8": names_of_bytes,
    "a class in every image": lambda t: both(t, lambda n: ("x", "y" if n % 2 else "z")),
    "a class in fewer": lambda t: both(t, lambda n: ("x" if n > 5 else "y",)),
    "two classes that always": lambda t: both(t, lambda n: ("x", "y") if n % 2 else ("z",)),
    "links to folders": linked,
    "hidden files": lambda t: folders(t, "cat/a.jpg", "cat/.b.jpg", ".git/c.jpg", "dog/a.jpg"),
    "files that are no images": lambda t: [
        t.image("cat/a.jpg"),
        (t.images / "cat/notes.txt").touch(),
        folders(t, "dog/b.jpg"),
    ],
    "a class's folder without": lambda t: [
        (t.images / "eel").mkdir(parents=True),
        folders(t, "a/0.jpg"),
    ],
    "the data root inside": output_inside,
    "grey, palette": ordinary,
    "`.jpg` `.jpeg`": suffixes,
    "turned by EXIF": turned,
    "16 bits": deep,
    "transparent": transparent,
    "more than 50 million": None,
    "truncated": damaged,
    "the same name in two": lambda t: t.list("1/a,x\n2/a,y\n", images=("1/a.jpg", "2/a.jpg")),
    "the same name with two": lambda t: t.list("a.jpg,x\na.png,y\n", images=("a.jpg", "a.png")),
    "`--json` with the sizes of upright": lambda t: t.sized((10, 8)),
    "`--json` with the sizes of the pixels": lambda t: t.sized((8, 10)),
    "`--json` with other": lambda t: t.sized((5, 5)),
    "ids as whole numbers": lambda t: t.json(
        images_0={"id": 1.0}, annotations_0={"image_id": "1", "category_id": 1.0}
    ),
    "ids of other text": lambda t: t.json(
        images_0={"id": "x"},
        annotations_0={"image_id": "x"},
        images_1={"id": 2**70},
        annotations_1={"image_id": 2**70},
    ),
    "an id that occurs twice": lambda t: t.json(images_1={"id": 1}),
    "`iscrowd` as": lambda t: t.json(
        annotations_0={"iscrowd": "0"}, annotations_1={"iscrowd": None}, images_0={"height": 8.0}
    ),
    "NaN, null": lambda t: t.json(images_0={"license": float("nan")}, annotations_0={"area": None}),
    "a category that has no": lambda t: t.json(
        categories_0={"supercategory": "pet"},
        categories_1={"id": 3, "name": "pet"},
        annotations_1={"category_id": 1},
    ),
    "a few annotations": lambda t: t.json(annotations_0={"segmentation": [[0, 0, 1, 1]]}),
    "no annotation with": lambda t: t.json(
        annotations_0={"segmentation": []}, annotations_1={"segmentation": None}
    ),
    "run lengths": lambda t: t.json(
        annotations_0={"segmentation": {"size": [9, 9], "counts": [81]}}
    ),
    "an annotation of an image": lambda t: t.json(annotations_0={"image_id": 7}),
    "one COCO result file": result_file,
    "a `.npz` whose": arrays,
    "whole numbers as floats": other_masks,
    "a file where a folder": file_for_folder,
}


@pytest.mark.parametrize(("what", "happens"), [row for row in ROWS if row[1]])
def test_what_the_table_says(what, happens, tmp_path, monkeypatch, caplog):
    (start,) = [start for start in TRIALS if what.startswith(start)]
    monkeypatch.chdir(tmp_path)
    trial = Trial(tmp_path)
    trial.copied, small = False, False
    try:
        if TRIALS[start] is None:
            enormous(trial, monkeypatch)
        else:
            small = TRIALS[start](trial) is True
        warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        told = [text for text in warned if small or not any(few in text for few in TOO_FEW)]
        found = "copied" if trial.copied else "told" if told else "read"
    except (ValueError, FileNotFoundError) as error:
        found = "refused"
        assert str(tmp_path) in str(error)
    assert happens.startswith(found), caplog.text


def test_every_row_is_tried():
    assert len(TRIALS) == sum(bool(happens) for _, happens in ROWS)
    suffixes = next(what for what, _ in ROWS if what.startswith("`.jpg`"))
    assert sorted(suffixes.replace("`", "").split()) == sorted(IMAGE_SUFFIXES)
