import hashlib
import json
import logging
import os

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy import ndimage

from lib.data import shapes
from lib.data.coco import CocoImages
from lib.data.images import read_image
from lib.data.shapes import CLASS_NAMES, SIZE, draw_scene, make_shapes
from tests.small_training import tool

FEW = {"train": 3, "val": 2, "test": 2}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng([1, n])) for n in range(120)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    assert make_shapes(root, num_images=FEW)
    return root / "shapes"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def touching(scene):
    grown = [ndimage.binary_dilation(mask, iterations=2) for mask in scene.masks]
    return any((grown[i] & scene.masks[j]).any() for i in range(len(grown)) for j in range(i))


def test_what_is_in_a_scene(scenes):
    for scene in scenes:
        count = len(scene.class_idx)
        assert 1 <= count <= 4
        assert 1 <= len(set(scene.class_idx)) <= 2
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == scene.emblems.shape == (count, SIZE, SIZE)
        assert scene.masks.sum(0).max() == 1
        assert not (scene.emblems & ~scene.masks).any()
        assert scene.masks.sum((1, 2)).min() > 300
        assert scene.emblems.sum((1, 2)).min() > 20


def test_proportions(scenes):
    repeated = [len(set(s.class_idx)) < len(s.class_idx) for s in scenes]
    assert 0.4 < np.mean(repeated) < 0.6
    assert 0.15 < np.mean([touching(s) for s in scenes]) < 0.35
    classes = np.bincount(np.concatenate([s.class_idx for s in scenes]), minlength=5)
    assert classes.min() > 0.1 * classes.sum()
    emblem = np.concatenate([s.emblems.sum((1, 2)) / s.masks.sum((1, 2)) for s in scenes])
    assert 0.06 < emblem.mean() < 0.09


def test_what_is_painted_later_covers_what_was_there():
    waves = np.zeros((0, 2))
    below = shapes._Outline(64, 50, (24, 20), 0.3, waves)
    above = shapes._Outline(64, 84, (20, 24), 0.0, waves)
    overlap = below.mask() & above.mask()
    assert overlap.sum() > 40
    for seed in range(4):
        scene = shapes._paint([below, above], np.array([0, 3]), False, np.random.default_rng(seed))
        assert np.array_equal(scene.masks[1], above.mask())
        assert np.array_equal(scene.masks[0], below.mask() & ~above.mask())
        bare = scene.masks & ~scene.emblems
        red, blue, both = (scene.image[m].mean(0) for m in (*bare, overlap & ~scene.emblems[1]))
        assert np.abs(both - blue).sum() < 0.5 * np.abs(both - red).sum()


def test_too_much_hidden_is_refused():
    waves = np.zeros((0, 2))
    first = shapes._Outline(64, 50, (24, 20), 0.3, waves)
    over = shapes._Outline(64, 56, (24, 20), 0.3, waves)
    assert shapes._paint([first, over], np.array([0, 3]), False, np.random.default_rng(0)) is None


def test_the_emblem_tells_the_class_and_the_body_hardly(scenes):
    """The nearest class mean of the colour is right for emblems, and often wrong for bodies."""

    def accuracy(parts):
        colours = np.array([c for c, _ in parts])
        labels = np.array([label for _, label in parts])
        half = len(parts) // 2
        means = np.stack([colours[:half][labels[:half] == c].mean(0) for c in range(5)])
        distance = np.linalg.norm(colours[half:, None] - means, axis=2)
        return (distance.argmin(1) == labels[half:]).mean()

    def direction(pixels):
        mean = pixels.mean(0) - pixels.mean()
        return mean / np.linalg.norm(mean)

    bodies, emblems = [], []
    for scene in scenes:
        for mask, emblem, c in zip(scene.masks, scene.emblems, scene.class_idx, strict=True):
            bodies.append((direction(scene.image[mask & ~emblem]), c))
            emblems.append((direction(scene.image[emblem]), c))
    assert accuracy(emblems) > 0.97
    assert accuracy(bodies) < accuracy(emblems) - 0.03


def test_the_recipe_has_not_changed_unnoticed():
    """Where this fails, the pictures are not those of before: raise _RECIPE, pin anew."""
    digest = hashlib.sha256()
    for number in range(5):
        scene = draw_scene(np.random.default_rng([2, number]))
        digest.update(scene.image.tobytes() + np.packbits(scene.masks).tobytes())
    assert (shapes._RECIPE, digest.hexdigest()[:16]) == (2, "5122c1c0274c98df")


def test_files_are_coco(made):
    for split, count in FEW.items():
        json_file = made / "annotations" / f"{split}.json"
        images = CocoImages(json_file)
        images.check_files(made / split)
        assert len(images) == count and images.without_labels == 0
        assert images.class_names == list(CLASS_NAMES)
        oracle = COCO(json_file)
        for record in images.images:
            image = read_image(made / split / record.file_name, record.size)
            assert image.shape == (SIZE, SIZE, 3)
            annotations = oracle.loadAnns(oracle.getAnnIds(record.image_id))
            assert 1 <= len(annotations) <= 4
            present = {a["category_id"] - 1 for a in annotations}
            assert present == set(np.flatnonzero(record.image_labels))
            for annotation in annotations:
                mask = oracle.annToMask(annotation)
                ys, xs = np.nonzero(mask)
                box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert annotation["bbox"] == box
                assert annotation["area"] == mask.sum()
                assert annotation["iscrowd"] == 0


def test_png_files_hold_the_drawn_pixels(made, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        shapes, "draw_scene", lambda rng: drawn.append(draw_scene(rng)) or drawn[-1]
    )
    make_shapes(tmp_path, num_images=FEW)
    first = read_image(tmp_path / "shapes/train/train_00001.png")
    assert np.array_equal(first, drawn[0].image)
    assert contents(tmp_path / "shapes") == contents(made)


def test_splits_differ_and_do_not_depend_on_their_number(made, tmp_path):
    make_shapes(tmp_path, num_images={"train": 1, "val": 1})
    for split in ("train", "val"):
        name = f"{split}/{split}_00001.png"
        assert (tmp_path / "shapes" / name).read_bytes() == (made / name).read_bytes()
    pngs = [p.read_bytes() for p in made.rglob("*.png")]
    assert len(set(pngs)) == sum(FEW.values())


def test_seeds_differ(made, tmp_path):
    make_shapes(tmp_path, seed=1, num_images={"train": 1})
    name = "train/train_00001.png"
    assert (tmp_path / "shapes" / name).read_bytes() != (made / name).read_bytes()


def test_a_second_run_does_nothing_and_mends_what_was_changed(tmp_path, caplog):
    make_shapes(tmp_path, num_images=FEW)
    folder = tmp_path / "shapes"
    before = contents(folder)
    times = {p: os.stat(p).st_mtime_ns for p in folder.rglob("*")}
    assert not make_shapes(tmp_path, num_images=FEW)
    assert {p: os.stat(p).st_mtime_ns for p in folder.rglob("*")} == times

    (folder / "val/val_00002.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert make_shapes(tmp_path, num_images=FEW)
    assert "making it anew" in caplog.text
    assert contents(folder) == before

    annotations = folder / "annotations/test.json"
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps({**content, "annotations": []}))
    assert make_shapes(tmp_path, num_images=FEW)
    assert contents(folder) == before


def test_an_interrupted_run_is_finished(tmp_path, monkeypatch, made):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shapes, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_shapes(tmp_path, num_images=FEW)
    assert make_shapes(tmp_path, num_images=FEW)
    assert contents(tmp_path / "shapes") == contents(made)


def test_tool(tmp_path, capsys):
    words = ["--root", str(tmp_path), "--train", "1", "--val", "1", "--test", "1"]
    assert tool("data shapes")(words) == 0
    assert "made" in capsys.readouterr().out
    assert tool("data shapes")(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert tool("data shapes")([*words, "--val", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: the seed must be at least 0")
    (tmp_path / "x").touch()
    assert tool("data shapes")(["--root", str(tmp_path / "x"), *words[2:]]) == 2
