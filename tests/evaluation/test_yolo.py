"""The YOLO data set as a strict reader of the format and as supervision see it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from lib.proposals import rle
from lib.provenance import file_fingerprint
from tests.blobs import SIZE, blob
from tests.small_training import tool

SEEN = {"masks_seen": ["sam was trained with masks"]}
IMAGES = [(5, "sub/a.png"), (6, "b.JPG"), (7, "c.png"), (8, "sub/a.b.gif")]


# (image id, category id, mask); image 7 has none.
WANTED = [
    (5, 9, blob(20, 20, 15, 9, hole=True)),
    (5, 4, blob(45, 15, 8, 6) | blob(48, 32, 6, 4) | blob(5, 35, 3, 3)),
    (6, 4, blob(30, 18, 40, 30)),  # beyond the image on all sides
    (8, 9, blob(10, 10, 5, 8)),
]
PLACES = {5: "sub__a.png", 6: "b.jpg", 8: "sub__a.b.png"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine/sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for _, name in IMAGES:
        pixels = rng.integers(256, size=(*SIZE, 3), dtype=np.uint8)
        kind = {"JPG": "JPEG"}.get(name.rpartition(".")[2])
        Image.fromarray(pixels).save(Path("mine") / name, format=kind)
    content = {
        "info": SEEN,
        "images": [
            {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for number, name in IMAGES
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat: big"}],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "segmentation": rle.mask_to_rle(mask),
                "score": 0.9 - 0.1 * number,
            }
            for number, (image, category, mask) in enumerate(WANTED)
        ],
    }
    Path("labels.json").write_text(json.dumps(content))
    return tmp_path


WORDS = ["--pseudo-labels", "labels.json", "--images", "mine"]


@dataclass
class Read:
    names: dict[int, str]
    instances: dict[str, list[tuple[int, np.ndarray]]]
    """Class and (N, 2) points in fractions, by file of the image."""


def read_yolo(path):
    """Reads the format as it is described, and refuses what is not in the description."""
    content = yaml.safe_load(path.read_text())
    root = path.parent / content.get("path", "")
    names = content["names"]
    assert list(names) == list(range(content["nc"]))
    instances = {}
    for key in ("train", "val"):
        listed = root / content[key]
        for line in listed.read_text().splitlines():
            assert line.startswith("./")  # relative to the list
            image = listed.parent / line
            assert image.is_file()
            assert image.suffix in (".jpg", ".png")
            # The last /images/ of the path becomes /labels/, the suffix .txt.
            head, _, tail = str(image).rpartition("/images/")
            labels = Path(f"{head}/labels/{tail}").with_suffix(".txt")
            found = []
            for row in labels.read_text().splitlines():
                number, *values = row.split(" ")
                assert re.fullmatch("[0-9]+", number)
                assert int(number) in names
                points = np.array(values, float).reshape(-1, 2)
                assert len(points) >= 3
                assert points.min() >= 0
                assert points.max() <= 1
                found.append((int(number), points))
            instances[image.name] = found
    assert len(list((root / "images/train").iterdir())) == len(instances)
    assert len(list((root / "labels/train").glob("*"))) == len(instances)
    return Read(names, instances)


def filled(points):
    """The mask inside a polygon whose points are corners of pixels, by counting crossings."""
    points = points * (SIZE[1], SIZE[0])
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = np.zeros(SIZE, bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:
            crosses = (y > min(y1, y2)) & (y < max(y1, y2))
            inside ^= crosses & (x > x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside


def iou(one, two):
    return (one & two).sum() / (one | two).sum()


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_a_reader_of_the_format_sees_the_masks(place, tolerance, capsys):
    assert tool("export yolo")([*WORDS, "--polygon-tolerance", str(tolerance)]) == 0
    assert "4 instances on 3 images\nwritten: labels_yolo/data.yaml" in capsys.readouterr().out
    read = read_yolo(Path("labels_yolo/data.yaml"))
    assert read.names == {0: "cat: big", 1: "dog"}  # in the order of the ids, as everywhere
    assert set(read.instances) == set(PLACES.values())
    for image, name in PLACES.items():
        wanted = [(category, mask) for i, category, mask in WANTED if i == image]
        for (number, points), (category, mask) in zip(read.instances[name], wanted, strict=True):
            assert number == {4: 0, 9: 1}[category]
            if tolerance:
                assert iou(filled(points), mask) > 0.85
            else:
                assert np.array_equal(filled(points), mask)


def test_supervision_reads_it(place):
    supervision = pytest.importorskip("supervision", reason="pip install -e .[supervision]")
    assert tool("export yolo")([*WORDS, "--polygon-tolerance", "0"]) == 0
    folder = Path("labels_yolo")
    data = supervision.DetectionDataset.from_yolo(
        str(folder / "images/train"), str(folder / "labels/train"), str(folder / "data.yaml")
    )
    assert data.classes == ["cat: big", "dog"]
    seen = {Path(path).name: found for path, _, found in data}
    assert set(seen) == set(PLACES.values())
    for image, name in PLACES.items():
        wanted = [(category, mask) for i, category, mask in WANTED if i == image]
        assert seen[name].class_id.tolist() == [{4: 0, 9: 1}[category] for category, _ in wanted]
        for found, (_, mask) in zip(seen[name].mask, wanted, strict=True):
            assert found[mask].all()  # it also counts the pixels right of and below an outline,
            seams = cv2.dilate(mask.astype(np.uint8), np.ones((2, 2)), anchor=(1, 1)) > 0
            assert (found & ~seams).sum() <= 40  # and draws the seams between parts


def test_images_are_linked_copied_or_converted(place):
    assert tool("export yolo")(WORDS) == 0
    images = Path("labels_yolo/images/train")
    assert (images / "b.jpg").resolve() == place / "mine/b.JPG"
    converted = images / "sub__a.b.png"
    assert not converted.is_symlink()
    with Image.open("mine/sub/a.b.gif") as image:
        wanted = np.array(image.convert("RGB"))
    assert np.array_equal(np.array(Image.open(converted)), wanted)
    assert tool("export yolo")([*WORDS, "--copy-images"]) == 0
    assert not (images / "b.jpg").is_symlink()
    assert (images / "b.jpg").read_bytes() == Path("mine/b.JPG").read_bytes()


def test_an_image_that_exif_turns_is_written_as_its_masks_are(place):
    stored = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    stored[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save("mine/b.JPG", format="JPEG", exif=exif)
    assert tool("export yolo")(WORDS) == 0
    image = np.array(Image.open("labels_yolo/images/train/b.png"))
    assert image.shape[:2] == SIZE
    assert image[:, -9:].min() > 200


def test_it_says_what_it_was_made_from_and_replaces_only_its_own(place, capsys):
    assert tool("export yolo")(WORDS) == 0
    content = yaml.safe_load(Path("labels_yolo/data.yaml").read_text())
    wanted = {"pseudo_labels": file_fingerprint(Path("labels.json")), **SEEN}
    assert content["made_from"] == wanted
    Path("labels_yolo/labels/train.cache").touch()
    assert tool("export yolo")(WORDS) == 0
    assert not Path("labels_yolo/labels/train.cache").exists()
    assert tool("export yolo")([*WORDS, "--output", "mine"]) == 2
    assert "mine: holds files that are no YOLO data set" in capsys.readouterr().err
    assert Path("mine/b.JPG").is_file()


def test_what_cannot_be_exported_is_named(place, capsys):
    assert tool("export yolo")(["--images", "mine", "--json", "labels.json"]) == 2
    assert "Outputs: no run with a checkpoint" in capsys.readouterr().err
    Path("mine/c.png").rename("mine/sub__a.png")
    content = json.loads(Path("labels.json").read_text())
    content["images"][2]["file_name"] = "sub__a.png"
    content["annotations"][0]["image_id"] = 7
    Path("labels.json").write_text(json.dumps(content))
    assert tool("export yolo")(WORDS) == 2
    assert "names with their folders become one: sub__a; rename them" in capsys.readouterr().err
    Path("labels.json").write_text(json.dumps({**content, "annotations": []}))
    assert tool("export yolo")(WORDS) == 2
    assert "labels.json: no annotation to export" in capsys.readouterr().err
    assert not Path("labels_yolo").exists()
