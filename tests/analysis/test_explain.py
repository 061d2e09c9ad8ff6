"""tools/look.py explain, and what the method sees as layers of the gallery."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.data.coco import CocoImages
from lib.proposals import rle
from lib.visualization.panels import captioned, wrap_text
from tests.analysis.test_inspection import make_run
from tests.small_training import DATA, SIZE, make_place, masks, tool
from tests.visualization.test_gallery import read_data


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_place()
    return tmp_path


def give_masks():
    """True masks for the first image, in a json of its own."""
    content = json.loads(Path("mine.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = rle.mask_to_rle(masks()[0])
    Path("mine.json").write_text(json.dumps(content))


def panels(path, columns):
    """How many panels a figure has, from the pictures that its rows and columns hold."""
    figure = cv2.imread(str(path))
    width = figure.shape[1] / columns
    height = 512 * SIZE[0] / SIZE[1]
    assert figure.shape[1] == columns * (512 + 2 * 12) + (columns - 1) * 6
    middles = [int((k + 0.5) * width) for k in range(columns)]
    coloured = np.abs(figure.astype(int) - 250).max(axis=2) > 40
    count = 0
    for x in middles:
        runs = np.diff(np.flatnonzero(np.diff(coloured[:, x - 60 : x + 60].any(axis=1))))
        count += int((runs > 0.9 * height).sum())
    return count


def test_an_image_of_a_data_set_by_name_and_by_id(place, capsys):
    make_run()
    give_masks()
    assert tool("look explain")(["a", *DATA, "--run", "run", "--columns", "5"]) == 0
    assert "written: run/explain/a.png" in capsys.readouterr().out
    # image, proposals, responses, what peaks respond to, clusters, 2 stages, detections, truth
    assert panels("run/explain/a.png", 5) == 9
    assert tool("look explain")(["100", *DATA, "--run", "run", "--output", "same.png"]) == 0
    assert cv2.imread("same.png").shape[1] < cv2.imread("run/explain/a.png").shape[1]  # 3 columns


def test_any_picture(place, caplog):
    make_run("proposals.options", "{min_area: 20}", with_prm=False)
    arguments = ["images/e.png", "--present", "dog", "--run", "run", "--output", "out/e.png"]
    assert tool("look explain")([*arguments, "--columns", "5"]) == 0
    assert panels("out/e.png", 5) == 5  # without PRM: no peaks, no clusters; no true masks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["z.png", *DATA], "no image has the id or name z.png"),
        (["images/e.png", "--present", "fox"], "does not know fox; it knows cat, dog"),
        (["images/z.png", "--present", "cat"], "images/z.png: no such image"),
        (["a.png", "--present", "cat", *DATA], "--present is for a picture of no data set"),
        (["a.png"], "name a data set"),
    ],
)
def test_says_what_is_wrong(place, capsys, arguments, message):
    make_run(with_prm=False)
    assert tool("look explain")([*arguments, "--run", "run"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]


def test_layers_of_the_gallery(place):
    make_run()
    assert tool("look gallery")([*DATA, "--run", "run", "--output", "page", "--details", "3"]) == 0
    overview = read_data(Path("page"), "overview")
    names = [layer["id"] for layer in overview["layers"]]
    assert names == ["mined_1", "mined_2", "clusters", "prm", "proposals"]
    assert all(layer["detail"] for layer in overview["layers"])
    assert overview["detailed"] == [0, 1, 2]
    details = read_data(Path("page"), "details-1")
    assert len(details["proposals"]) == len(masks())
    assert details["proposals"][0][3] == [[0, 0, 0, 63, 59, 0, 0, -63]]  # 16 x 15 pixels
    ((class_idx, source, peaks),) = details["prm"]
    assert class_idx == 1 and len(peaks) > 0
    assert all(0 <= x <= SIZE[1] and 0 <= y <= SIZE[0] for x, y in peaks)
    png = np.frombuffer(base64.b64decode(source.removeprefix("data:image/png;base64,")), np.uint8)
    assert cv2.imdecode(png, cv2.IMREAD_UNCHANGED).shape[2] == 4
    mined = details["mined_1"] + details["mined_2"]
    assert len(mined) > 0 and {item[0] for item in mined} == {1}  # a dog
    assert all(item[3] in [proposal[3] for proposal in details["proposals"]] for item in mined)


def test_stored_clusters_and_proposals_without_a_network(place):
    (place / "run").mkdir()
    Path("none.json").write_text("[]")
    arguments = [*DATA, "--detections", "none.json", "--output", "page"]
    assert tool("look gallery")(arguments) == 0
    overview = read_data(Path("page"), "overview")
    assert [layer["id"] for layer in overview["layers"]] == ["detections", "clusters", "proposals"]
    details = read_data(Path("page"), "details-0")
    assert [item[:3] for item in details["clusters"]] == [[0, 3, None]]
    assert tool("look gallery")([*arguments, "--details", "0"]) == 0
    assert not list(Path("page/data").glob("details*"))


def test_a_broken_image_has_no_details_and_is_named(place, caplog):
    make_run()
    Path("data/proposals/mine/b.npz").write_bytes(b"broken")
    assert tool("look gallery")([*DATA, "--run", "run", "--output", "page"]) == 0
    assert read_data(Path("page"), "overview")["detailed"] == [0, 2, 3, 4]
    assert any("no details of b.png" in record.getMessage() for record in caplog.records)


def test_images_are_found_by_id_and_by_name(place):
    coco = CocoImages("mine.json")
    assert coco.find(["sub/a.png", "a.png", "a", "103"]) == [0, 0, 0, 3]
    with pytest.raises(ValueError, match=r"mine.json: no image has the id or name x, 7"):
        coco.find(["a", "x", "7"])


def test_captions_are_broken_at_spaces():
    lines = wrap_text("some words and a", 0.5, 80)
    assert len(lines) > 1 and " ".join(lines) == "some words and a"
    assert wrap_text("unbreakablybroadword b", 0.5, 30) == ["unbreakablybroadword", "b"]
    assert wrap_text("", 0.5, 80) == []
    low, high = (
        captioned("title", np.zeros((9, 16, 3), np.uint8), t, 400) for t in ("a", "a " * 99)
    )
    assert high.shape[0] > low.shape[0] and high.shape[1] == low.shape[1]
