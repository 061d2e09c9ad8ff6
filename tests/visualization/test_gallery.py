"""The folder that the gallery tool writes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tools import test_evaluate_export
from tests.tools.test_evaluate_export import MINE, RUN, mask, tool

HISTORY = [{"iteration": 20 * k, "total": 5.0 - k, "lr": 0.1} for k in range(1, 4)]


some_run = test_evaluate_export.place
"""A fixture: three images with masks and a run with detections on them."""


@pytest.fixture
def place(some_run):
    """With a history of its training."""
    (some_run / RUN / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in HISTORY))
    return some_run


def read_data(folder, name):
    text = (folder / "data" / f"{name}.js").read_text()
    start, end = f'galleryData("{name}", ', ");\n"
    assert text.startswith(start) and text.endswith(end)
    return json.loads(text[len(start) : -len(end)])


def test_the_newest_run_is_shown(place, capsys):
    assert tool("look gallery")(MINE) == 0
    folder = RUN / "gallery" / "mine"
    assert f"3 images; open {folder / 'index.html'}" in capsys.readouterr().out
    overview = read_data(folder, "overview")
    assert [layer["id"] for layer in overview["layers"]] == ["detections", "ground_truth"]
    assert [c["name"] for c in overview["classes"]] == ["dog", "cat"]
    first, second, third = overview["images"]
    assert (first["name"], first["ap"], first["found"], first["objects"]) == (
        "sub/one.png", 1.0, 1, 1,
    )  # fmt: skip
    assert (second["ap"], third["ap"], third["objects"]) == (1.0, None, 0)
    assert first["has"] == {"detections": [1, 0.9], "ground_truth": [1, 1.0]}
    assert overview["metrics"] == {"ap50": 1.0, "ap75": 0.5}
    assert [entry["total"] for entry in overview["history"]] == [4.0, 3.0, 2.0]
    assert set(overview["precision"]) == {"0", "1"}
    chunk = read_data(folder, "chunk-0")
    (class_idx, score, hit, outlines) = chunk[0]["detections"][0]
    assert (class_idx, score, hit, outlines) == (1, 0.9, 1, [[20, 20, 0, 39, 39, 0, 0, -39]])
    assert chunk[0]["ground_truth"][0][:3] == [1, None, 1]
    assert chunk[2]["ground_truth"] == []  # a crowd
    assert cv2.imread(str(folder / first["image"])).shape == (40, 60, 3)
    html = (folder / "index.html").read_text()
    assert "20260101-000000" in html and "http" not in html


def test_other_thresholds(place):
    assert (
        tool("look gallery")([*MINE, "--iou", "0.75", "--score-thresh", "0.5", "--limit", "2"]) == 0
    )
    overview = read_data(RUN / "gallery" / "mine", "overview")
    assert [image["ap"] for image in overview["images"]] == [1.0, 0.0]
    assert overview["images"][1]["has"]["detections"] == []
    assert overview["iou"] == 0.75


def test_pseudo_labels_of_images_with_tags_alone(place):
    """As for images of one's own: no masks, so nothing to compare with."""
    truth = json.loads((place / "mine.json").read_text())
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    (place / "tags.json").write_text(json.dumps(truth))
    results = json.loads((RUN / "test/mine/detections.json").read_text())
    labels = {**truth, "annotations": [{"id": k, **r} for k, r in enumerate(results, start=1)]}
    (place / "labels.json").write_text(json.dumps(labels))
    arguments = ["--json", "tags.json", "--images", "images", "--output", "page"]
    assert tool("look gallery")([*arguments, "--pseudo-labels", "labels.json"]) == 0
    overview = read_data(place / "page", "overview")
    assert [layer["id"] for layer in overview["layers"]] == ["pseudo_labels"]
    assert overview["metrics"] == {} and overview["precision"] == {}
    assert overview["images"][0]["ap"] is None and overview["images"][0]["objects"] is None


def test_true_masks_alone(place):
    arguments = [*MINE, "--ground-truth", "--output", "page"]
    assert tool("look gallery")(arguments) == 0
    overview = read_data(place / "page", "overview")
    assert [layer["id"] for layer in overview["layers"]] == ["ground_truth"]
    assert overview["images"][0]["ap"] is None and overview["history"] == []


def test_names_are_text_and_never_markup(place):
    truth = json.loads((place / "mine.json").read_text())
    truth["categories"][0]["name"] = "</script><script>alert(1)</script>"
    (place / "mine.json").write_text(json.dumps(truth))
    assert tool("look gallery")(MINE) == 0
    html = (RUN / "gallery/mine/index.html").read_text()
    assert "alert(1)" in html and "<script>alert" not in html


def test_large_images_are_made_smaller_and_get_a_thumbnail(place):
    cv2.imwrite(str(place / "images/two.png"), np.zeros((1000, 2000, 3), np.uint8))
    truth = json.loads((place / "mine.json").read_text())
    truth["images"][1].update(height=1000, width=2000)
    truth["annotations"] = truth["annotations"][:1]
    (place / "large.json").write_text(json.dumps(truth))
    arguments = ["--json", "large.json", "--images", "images", "--run", str(RUN)]
    assert tool("look gallery")(arguments) == 0  # without results on a data set of this name
    folder = RUN / "gallery" / "large"
    image = read_data(folder, "overview")["images"][1]
    assert cv2.imread(str(folder / image["image"])).shape == (640, 1280, 3)
    assert cv2.imread(str(folder / image["thumb"])).shape == (160, 320, 3)
    assert (image["width"], image["height"]) == (2000, 1000)


def test_an_image_that_cannot_be_read_does_not_stop_the_others(place, capsys):
    (place / "images/two.png").write_bytes(b"no image")
    assert tool("look gallery")(MINE) == 1
    assert "1 of 3 images failed:\n  two.png: " in capsys.readouterr().err
    folder = RUN / "gallery/mine"
    names = [image["name"] for image in read_data(folder, "overview")["images"]]
    assert names == ["sub/one.png", "three.png"]
    assert len(read_data(folder, "chunk-0")) == 2


def test_an_older_gallery_is_replaced_and_other_folders_are_left_alone(place, capsys):
    assert tool("look gallery")([*MINE, "--output", "page"]) == 0
    (place / "page/data/chunk-9.js").write_text("old")
    (place / ".page.killed.part/data").mkdir(parents=True)
    assert tool("look gallery")([*MINE, "--output", "page", "--iou", "0.6"]) == 0
    assert not (place / "page/data/chunk-9.js").exists()
    assert tool("look gallery")([*MINE, "--output", "images"]) == 2
    assert "images: holds files that are no gallery" in capsys.readouterr().err
    assert (place / "images/two.png").is_file()
    assert not list(place.glob(".*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MINE, "--run", "Outputs/none"], "Outputs/none: no such run folder"),
        ([*MINE, "--detections", "absent.json"], "absent.json: no such file"),
        ([], "name a data set"),
    ],
)
def test_says_what_is_wrong(place, capsys, arguments, message):
    assert tool("look gallery")(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_a_detection_on_an_unknown_image_is_named(place, capsys):
    entry = {"image_id": 99, "category_id": 5, "score": 0.5, "segmentation": mask(0, 0, 5)}
    (place / "own.json").write_text(json.dumps([entry]))
    assert tool("look gallery")([*MINE, "--detections", "own.json"]) == 2
    assert "own.json: entry 0 is of image 99" in capsys.readouterr().err


def test_a_gallery_that_is_up_to_date_is_left(place, capsys):
    def made(*more):
        assert tool("look gallery")([*MINE, "--output", "page", *more]) == 0
        return "up to date" not in capsys.readouterr().out

    assert made() and not made()
    assert made("--limit", "2") and not made("--limit", "2") and made()
    content = json.loads(Path("mine.json").read_text())
    content["categories"][0]["name"] = "tiger"
    Path("mine.json").write_text(json.dumps(content))
    assert made() and not made()
    image = cv2.imread("images/two.png")
    cv2.imwrite("images/two.png", 255 - image)
    assert made() and not made()
    Path("page/index.html").unlink()
    assert made() and not made()
