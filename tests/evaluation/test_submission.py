"""The file for COCO's server, by tools/export.py submission."""

import json
import zipfile

import numpy as np
import pytest

from lib.evaluation.submission import submission_name
from lib.proposals import rle
from tests.small_training import tool


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data root with two images of test-dev, and a run with three detections."""
    monkeypatch.chdir(tmp_path)
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012}.jpg", "height": 5, "width": 6} for n in (1, 581918)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
    }
    annotations = tmp_path / "data/coco2017/annotations"
    annotations.mkdir(parents=True)
    (annotations / "image_info_test-dev2017.json").write_text(json.dumps(content))
    return tmp_path


def detection(image_id=581918, category_id=90, score=0.25):
    mask = rle.mask_to_rle(np.tri(5, 6))
    box = {"bbox": rle.tight_box(mask)}
    return (
        {"image_id": image_id, "category_id": category_id, "score": score}
        | box
        | {"segmentation": mask}
    )


def written(place, detections):
    path = place / "Outputs/a/test/coco2017test/detections.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(detections))
    return path


def test_named_and_packed_as_the_server_wants_it(place, capsys):
    given = [detection(), detection(1, 1, 0.5), detection(1, 90)]
    folder = written(place, given).parent
    assert tool("export submission")(["--run", "Outputs/a"]) == 0
    assert "3 detections on 2 of 2 images" in capsys.readouterr().out
    with zipfile.ZipFile(folder / "detections_test-dev2017_CIM_results.zip") as archive:
        assert archive.namelist() == ["detections_test-dev2017_CIM_results.json"]
        found = json.loads(archive.read(archive.namelist()[0]))
    fields = ("image_id", "category_id", "score", "segmentation")
    assert found == [{name: one[name] for name in fields} for one in given]


def test_any_detections_under_another_name(place):
    path = written(place, [detection()])
    args = ["--detections", str(path), "--algorithm", "CIM+", "--output", str(place / "up")]
    assert tool("export submission")(args) == 0
    assert [p.name for p in (place / "up").iterdir()] == [
        "detections_test-dev2017_CIM+_results.zip"
    ]


@pytest.mark.parametrize(
    ("detections", "options", "text"),
    [
        ([], [], "no detections to upload"),
        ([detection(2)], [], "entry 0 is of image 2, which the data set does not list"),
        ([detection(category_id=2)], [], "category 2"),
        ([detection()] * 101, [], "image 581918 has 101 detections, the server counts 100"),
        ([detection()], ["--algorithm", "my best_one"], "the algorithm's name 'my best_one'"),
        ([detection()], ["--dataset", "shapes_test"], "test.json: the server takes detections on"),
    ],
)
def test_what_the_server_would_not_take_is_said_before(place, capsys, detections, options, text):
    folder = written(place, detections).parent
    assert tool("export submission")(["--run", "Outputs/a", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and text in line
    assert not list(folder.glob("*.zip")) and not list(folder.glob(".*"))


def test_names_of_the_sets():
    names = {
        "a/instances_val2017.json": "detections_val2017_x_results",
        "image_info_test2017.json": "detections_test2017_x_results",
    }
    assert {file: submission_name(file, "x") for file in names} == names
