"""evaluate, generate_pseudo_labels and visualize, on a run folder made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.proposals import rle
from tests.small_training import tool


def mask(top, left, side):
    whole = np.zeros((40, 60), dtype=bool)
    whole[top : top + side, left : left + side] = True
    return rle.mask_to_rle(whole)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data set `mine` of three images and a run with detections on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images/sub").mkdir(parents=True)
    names = ["sub/one.png", "two.png", "three.png"]
    for value, name in zip((0, 128, 255), names, strict=True):
        cv2.imwrite(str(tmp_path / "images" / name), np.full((40, 60, 3), value, np.uint8))
    truth = {
        "images": [
            {"id": 10 + i, "file_name": name, "height": 40, "width": 60}
            for i, name in enumerate(names)
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 5, "segmentation": mask(5, 5, 10)},
            {"id": 2, "image_id": 11, "category_id": 2, "segmentation": mask(10, 20, 20)},
            {
                "id": 3,
                "image_id": 12,
                "category_id": 2,
                "segmentation": mask(20, 20, 20),
                "iscrowd": 1,
            },
        ],
    }
    (tmp_path / "mine.json").write_text(json.dumps(truth))
    results = [
        {"image_id": 10, "category_id": 5, "score": 0.9, "segmentation": mask(5, 5, 10)},
        {"image_id": 11, "category_id": 2, "score": 0.4, "segmentation": mask(10, 20, 16)},
        {"image_id": 12, "category_id": 2, "score": 0.1, "segmentation": mask(0, 0, 9)},
    ]
    run = tmp_path / "Outputs" / "small" / "20260101-000000"
    (run / "ckpt").mkdir(parents=True)
    (run / "ckpt" / "model_step3.pth").write_bytes(b"")
    (run / "config.yaml").write_text("test: {iou_thresholds: [0.5, 0.75]}\n")
    folder = run / "test" / "mine"
    folder.mkdir(parents=True)
    (folder / "detections.json").write_text(json.dumps(results))
    (folder / "detections_image_labels.json").write_text(json.dumps(results))
    return tmp_path


MINE = ["--json", "mine.json", "--images", "images"]
RUN = Path("Outputs/small/20260101-000000")


def test_evaluate_takes_the_newest_run_and_its_thresholds(place, capsys):
    assert tool("evaluate")([*MINE, "--per-class"]) == 0
    printed = capsys.readouterr().out
    assert "3 detections, 2 objects on 3 images" in printed
    metrics = json.loads((RUN / "test/mine/metrics.json").read_text())
    # The dog's mask is 16 x 16 of 20 x 20: an IoU of 0.64.
    assert metrics["metrics"] == {"ap50": 1.0, "ap75": 0.5}
    assert metrics["per_class"]["dog"] == {"objects": 1, "ap50": 1.0, "ap75": 0.0}
    rows = [
        line.split() for line in printed.splitlines() if line.startswith(("cat", "dog", "mean"))
    ]
    assert rows == [
        ["dog", "1", "100.0", "0.0"],
        ["cat", "1", "100.0", "100.0"],
        ["mean", "of", "2", "classes", "2", "100.0", "50.0"],
    ]


def test_evaluate_a_file_without_a_run(place, capsys):
    own = place / "own.json"
    own.write_bytes((RUN / "test/mine/detections.json").read_bytes())
    arguments = ["--detections", str(own), "--json", "mine.json", "--coco"]
    assert tool("evaluate")(arguments) == 0
    metrics = json.loads((place / "metrics.json").read_text())["metrics"]
    assert list(metrics)[:4] == ["ap25", "ap50", "ap70", "ap75"]
    assert metrics["ap"] == pytest.approx((1 + 0.3) / 2)
    assert tool("evaluate")([*arguments, "--evaluator", "pycocotools"]) == 0
    assert json.loads((place / "metrics.json").read_text())["metrics"] == metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "mine.json", "--name", "other"], "make it with tools/test_net.py"),
        (
            ["--json", "missing.json", "--detections", str(RUN / "test/mine/detections.json")],
            "no such",
        ),
        ([*MINE, "--detections", "absent.json"], "absent.json: no such file"),
        ([*MINE, "--run", "Outputs/none"], "no such run folder"),
        ([*MINE, "--set", "test.iou_threshold", "[0.5]"], "did you mean test.iou_thresholds"),
        ([], "name a data set"),
    ],
)
def test_evaluate_says_what_is_wrong(place, capsys, arguments, message):
    assert tool("evaluate")(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_evaluate_names_the_file_with_a_broken_entry(place, capsys):
    path = place / "own.json"
    path.write_text('[{"image_id": 10, "category_id": 5, "score": NaN, "segmentation": {}}]')
    assert tool("evaluate")([*MINE, "--detections", str(path)]) == 2
    assert f"{path}: entry 0: score is nan" in capsys.readouterr().err


def test_pseudo_labels(place, capsys):
    assert tool("generate_pseudo_labels")(MINE) == 0
    assert "2 instances on 2 of 3 images (cat 1, dog 1)" in capsys.readouterr().out
    labels = json.loads((RUN / "pseudo_labels/mine.json").read_text())
    assert [a["score"] for a in labels["annotations"]] == [0.9, 0.4]
    assert len(labels["images"]) == 3
    assert [c["name"] for c in labels["categories"]] == ["cat", "dog"]
    assert (RUN / "pseudo_labels/mine.counts.csv").read_text().splitlines() == [
        "image_id,file_name,cat,dog,total",
        "10,sub/one.png,1,0,1",
        "11,two.png,0,1,1",
        "12,three.png,0,0,0",
    ]


def test_pseudo_labels_options(place, capsys, caplog):
    arguments = [*MINE, "--output", "labels.json", "--segmentation", "uncompressed"]
    assert tool("generate_pseudo_labels")([*arguments, "--score-thresh", "0.05"]) == 0
    labels = json.loads((place / "labels.json").read_text())
    assert len(labels["annotations"]) == 3
    assert isinstance(labels["annotations"][0]["segmentation"]["counts"], list)
    polygons = [*arguments[:-1], "polygon", "--polygon-tolerance", "0"]
    assert tool("generate_pseudo_labels")(polygons) == 0
    drawn = json.loads((place / "labels.json").read_text())["annotations"]
    assert drawn[0]["segmentation"] == [[5, 5, 5, 15, 15, 15, 15, 5]]
    assert tool("generate_pseudo_labels")([*arguments, "--score-thresh", "0.95"]) == 0
    assert "none of 3 detections reaches the score 0.95" in caplog.text
    assert tool("generate_pseudo_labels")([*MINE, "--run", "nowhere"]) == 2
    assert tool("generate_pseudo_labels")([*MINE, "--set", "pseudo_labels.snap_iou", "0.7"]) == 2
    assert tool("generate_pseudo_labels")([*arguments, "--select", "adaptive"]) == 0
    labels = json.loads((place / "labels.json").read_text())
    assert [a["score"] for a in labels["annotations"]] == [0.9, 0.4]
    (RUN / "config.yaml").write_text("pseudo_labels: {select: adaptive}")
    assert tool("generate_pseudo_labels")(arguments) == 0
    labels = json.loads((place / "labels.json").read_text())
    assert labels["info"]["selection"]["select"] == "adaptive"
    capsys.readouterr()
    both = ["--select", "adaptive", "--score-thresh", "0.5"]
    assert tool("generate_pseudo_labels")([*arguments, *both]) == 2
    assert "--score-thresh is of --select score" in capsys.readouterr().err


def test_visualize_all_kinds(place, capsys):
    visualize = tool("look pictures")
    visual = RUN / "visual/mine"
    assert visualize(MINE) == 0
    assert "3 pictures with 2 instances (score 0.3 or more)" in capsys.readouterr().out
    assert cv2.imread(str(visual / "sub/one.png")).shape == (9 * 40, 9 * 60, 3)
    assert (visual / "overview.png").is_file()
    assert tool("generate_pseudo_labels")(MINE) == 0
    assert visualize([*MINE, "--pseudo-labels", "--limit", "1", "--compare"]) == 0
    pair = cv2.imread(str(visual / "sub/one_pseudo_labels.png"))
    assert pair.shape[1] == 2 * 9 * 60 + 4
    assert not (visual / "two_pseudo_labels.png").exists()
    assert visualize([*MINE, "--ground-truth", "--output", "truth", "--image", "two"]) == 0
    assert [p.name for p in Path("truth").iterdir()] == ["two_ground_truth.png"]
    assert visualize([*MINE, "--ground-truth", "--output", "truth", "--image", "three"]) == 0
    crowd = cv2.imread("truth/three_ground_truth.png")
    assert (crowd == 255).all()  # crowds are no instances


def test_visualize_chosen_images_and_threshold(place, capsys):
    arguments = [*MINE, "--image", "12", "sub/one.png", "--output", "out", "--sheet", "0"]
    assert tool("look pictures")([*arguments, "--score-thresh", "0.95"]) == 0
    assert {p.name for p in Path("out").rglob("*.png")} == {"three.png", "one.png"}
    blank = cv2.imread("out/three.png")
    assert (blank == 255).all()
    assert tool("look pictures")([*arguments, "--score-thresh", "0.05"]) == 0
    assert (cv2.imread("out/three.png") != 255).any()
    assert tool("look pictures")([*MINE, "--image", "four"]) == 2
    assert "no image has the id or name four" in capsys.readouterr().err


def test_visualize_needs_whole_images(place, capsys):
    path = place / "images/two.png"
    path.write_bytes(path.read_bytes()[:60])
    assert tool("look pictures")(MINE) == 2
    assert "two.png" in capsys.readouterr().err
