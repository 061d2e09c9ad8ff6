"""lib/analysis/labels.py against counts by hand, and the report of the tool."""

import json
from pathlib import Path

import numpy as np
import pytest

from lib.analysis.labels import label_quality
from lib.evaluation.coco_files import check_results, read_ground_truth
from lib.proposals import rle
from tests.small_training import tool


def box(x, y, width, height):
    mask = np.zeros((40, 40), bool)
    mask[y : y + height, x : x + width] = True
    return rle.mask_to_rle(mask)


def entry(image, category, segmentation, **more):
    ids = {"image_id": image, "category_id": category}
    return {**ids, "segmentation": segmentation, **more}


TRUTH = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 40} for i in (1, 2, 3, 4)],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        entry(1, 1, box(0, 0, 10, 10)),
        entry(2, 1, box(0, 0, 10, 10)),
        entry(2, 2, box(20, 20, 10, 10)),
        entry(3, 1, box(0, 0, 10, 10)),
        entry(3, 1, box(10, 0, 10, 10)),
        entry(3, 1, box(20, 0, 10, 10)),
        entry(3, 1, box(0, 20, 10, 10)),
        entry(4, 1, box(0, 0, 10, 10), iscrowd=1),
    ],
}
FOUND = [
    entry(1, 1, box(0, 0, 10, 8), score=0.9),  # IoU 0.8
    entry(2, 1, box(0, 0, 10, 6), score=0.2),  # 0.6
    entry(2, 2, box(0, 0, 10, 10), score=0.9),  # of the cat
    entry(3, 1, box(0, 0, 10, 10), score=0.9),
    entry(3, 1, box(0, 0, 20, 10), score=0.8),  # holds the better one
    entry(3, 1, box(0, 2, 10, 8), score=0.7),  # the object has its label already
    entry(4, 1, box(0, 0, 10, 5), score=0.9),  # in a crowd
]


def test_recall_and_precision_by_hand():
    truth = read_ground_truth(TRUTH)
    quality = label_quality(check_results(FOUND, truth), truth)
    assert list(quality) == [
        *("all", "class cat", "class dog", "images of 1 object", "images of 2 objects"),
        "images of 3 or more objects",
    ]
    everything = quality["all"]
    assert (everything["labels"], everything["objects"]) == (6, 7)
    assert everything["recall 0.5"] == pytest.approx(3 / 7 + 1 / 7)  # the wide one is 0.5, of both
    assert everything["precision 0.5"] == pytest.approx(4 / 6)
    assert everything["recall 0.75"] == pytest.approx(2 / 7)
    assert everything["precision 0.75"] == pytest.approx(2 / 6)
    assert quality["class dog"]["precision 0.5"] == quality["class dog"]["recall 0.5"] == 0
    many = quality["images of 3 or more objects"]
    assert (many["labels"], many["objects"], many["recall 0.75"]) == (3, 4, 0.25)


def test_without_labels_there_is_no_precision():
    truth = read_ground_truth(TRUTH)
    quality = label_quality([], truth)["all"]
    assert quality == {"objects": 7, "labels": 0, "recall 0.5": 0, "recall 0.75": 0}


def test_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("truth.json").write_text(json.dumps(TRUTH))
    folder = Path("run/test/truth")
    folder.mkdir(parents=True)
    (folder / "detections_image_labels.json").write_text(json.dumps(FOUND[:-1]))
    Path("none.json").write_text("[]")
    words = ["run", "none.json", "--json", "truth.json", "--output", "report.json"]
    assert tool("study labels")(words) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    rows = {(row[0].strip(), row[1].strip()): [cell.strip() for cell in row[2:]] for row in rows}
    report = json.loads(Path("report.json").read_text())
    score, adaptive = (report["runs"]["run"]["all"][rule] for rule in ("score", "adaptive"))
    assert (score["labels"], adaptive["labels"]) == (5, 5)
    assert (score["recall 0.5"], adaptive["recall 0.5"]) == (pytest.approx(3 / 7),) * 2
    assert rows["class cat", "adaptive"][0] == "2.0"  # the mean of 4 and 0
    assert rows["all", "score"][1].startswith("21.4")
    assert report["settings"] == {"score_thresh": 0.3, "relative_thresh": 0.4}

    only = [*words, "--set", "pseudo_labels.relative_thresh", "0.8"]
    assert tool("study labels")(only) == 0
    report = json.loads(Path("report.json").read_text())
    assert report["runs"]["run"]["all"]["adaptive"]["labels"] == 4
    assert tool("study labels")(["missing", "--json", "truth.json"]) == 2
    assert "make it with tools/test_net.py" in capsys.readouterr().err
