"""Changes single inputs of a finished small chain: what depends on one is made anew, no more."""

import importlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib.config import load_config
from lib.engine.checkpoint import load_checkpoint
from lib.engine.inference import Detector
from lib.files import read_json
from lib.modeling.model_builder import build_model
from lib.pipeline import label_my_images, runner
from lib.prm.clusters import ClusterStore
from lib.proposals.store import ProposalStore
from lib.provenance import Memory, fingerprint
from tests.proposals.tiny_sam import save_tiny
from tests.small_training import DATA, SETTINGS, tool

NAMES = ["a.png", "b.png", "c.png", "d.png"]
"""The last one has no label."""
CHAIN = (
    SETTINGS.replace("weights: random", "weights: start.pth")
    + """
proposals: {max_proposals: 12, options: {num_cells: 40, min_area: 20}}
prm:
  {backbone: resnet18, backbone_args: "${model.backbone_args}", weights: random, image_size: 32,
   epochs: 1, images_per_update: 3, base_lr: 0.05, backbone_lr_factor: 1.0,
   peak_thresh_relative: 0.5}
"""
)


def draw(name, seed):
    """Two bright rectangles on noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, size=(40, 56, 3), dtype=np.uint8)
    for left in (4, 32):
        top, channel = rng.integers(2, 18), rng.integers(3)
        image[top : top + 18, left : left + 18, channel] += 150
    cv2.imwrite(f"images/{name}", image)


def write_labels(*class_numbers):
    images = [
        {"id": n, "file_name": name, "height": 40, "width": 56} for n, name in enumerate(NAMES)
    ]
    annotations = [
        {"id": n, "image_id": n, "category_id": 7 + c} for n, c in enumerate(class_numbers)
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    Path("mine.json").write_text(json.dumps(content))


def write_imported(value):
    labels = np.zeros((40, 56), np.uint8)
    labels[5:25, 5:25], labels[10:30, 30:50] = 1, value
    Path("elsewhere").mkdir(exist_ok=True)
    cv2.imwrite("elsewhere/c.png", labels)


def write_weights(seed):
    torch.manual_seed(seed)
    config = load_config("chain.yaml", ["model.weights", "random"])
    torch.save(build_model(config.model, num_classes=2).Conv_Body.state_dict(), "start.pth")


class Chain:
    """All steps in one folder, run as a user would run them."""

    def __init__(self, imports=False):
        self.imports = imports
        self.settings = []

    def run(self):
        """Runs it to the end; returns the names of the results that were made anew."""
        before, tested = self.times(), set()
        original = Detector.__call__

        def noting(detector, read, passes):
            tested.add(f"detections {read.record.file_name}")
            return original(detector, read, passes)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Detector, "__call__", noting)
            self._run()
        after = self.times()
        return tested | {name for name in after if after[name] != before.get(name)}

    def _run(self):
        overrides = ["--cfg", "chain.yaml", "--set", *self.settings]
        cpu = ["--device", "cpu", "--threads", "1"]
        if self.imports:
            source = ["--format", "label-png", "--source", "elsewhere", "--jobs", "1"]
            tool("proposals import")([*DATA, *source])  # names the images that it has none of
        for name, options in {
            "proposals make": ["--jobs", "1", *overrides],
            "prm train": [*cpu, "--overwrite", *overrides],
            "prm clusters": ["--device", "cpu", *overrides],
            "train_net": ["--output", "run", *cpu, "--overwrite", *overrides],
            "test_net": ["--run", "run", *cpu, *overrides],
            "generate_pseudo_labels": ["--score-thresh", "0", "--output", "labels.json"]
            + ["--detections", "run/test/mine/detections.json"],
        }.items():
            assert tool(name)([*DATA, *options]) == 0, name

    @staticmethod
    def times():
        files = {"prm": Path("data/prm/mine.pth"), "train": Path("run/ckpt/model_step4.pth")}
        for name in NAMES:
            for store in (ProposalStore("data/proposals/mine"), ClusterStore("data/clusters/mine")):
                files[f"{store.kind} {name}"] = store.path(name)
        return {name: file.stat().st_mtime_ns for name, file in files.items() if file.is_file()}

    @staticmethod
    def results():
        """Fingerprints of the content of all results."""
        memory = Memory("elsewhere")
        stores = (ProposalStore("data/proposals/mine"), ClusterStore("data/clusters/mine"))
        weights = [
            torch.load(file, weights_only=True)["model"]
            for file in ("data/prm/mine.pth", "run/ckpt/model_step4.pth")
        ]
        return {
            **{
                f"{store.kind} {name}": entry.fingerprint
                for store in stores
                for name, entry in store.stored(NAMES, memory).items()
            },
            "prm": fingerprint(weights[0]),
            "train": fingerprint(weights[1]),
            "detections": Path("run/test/mine/detections.json").read_bytes(),
            "pseudo labels": read_json("labels.json"),
        }


def of(kind, names=NAMES):
    return {f"{kind} {name}" for name in names}


ALL = {"prm", "train", *of("proposals"), *of("clusters", NAMES[:3]), *of("detections")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders with a finished chain, without and with imported proposals of one image."""
    folders = {}
    for imports in (False, True):
        folders[imports] = tmp_path_factory.mktemp("finished")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folders[imports])
            Path("images").mkdir()
            for seed, name in enumerate(NAMES):
                draw(name, seed)
            write_labels(0, 1, 1)
            write_imported(2)
            Path("chain.yaml").write_text(CHAIN)
            write_weights(0)
            assert Chain(imports).run() == ALL
            assert Chain(imports).run() == set()
    return folders


def label(chain):
    write_labels(0, 0, 1)


def image(chain):
    draw("b.png", 10)


def image_without_label(chain):
    draw("d.png", 10)


def label_of_one_without(chain):
    write_labels(0, 1, 1, 0)


def proposal_setting(chain):
    chain.settings = ["proposals.max_proposals", "9"]


def imported_proposals(chain):
    write_imported(3)
    labels = cv2.imread("elsewhere/c.png", cv2.IMREAD_UNCHANGED)
    labels[12:20, 30:40] = 1
    cv2.imwrite("elsewhere/c.png", labels)


def peaks(chain):
    chain.settings = ["prm.peak_thresh_relative", "0.9"]


def prm(chain):
    chain.settings = ["prm.epochs", "2"]


def weights(chain):
    write_weights(1)


def mining_setting(chain):
    chain.settings = ["mining.seed_fraction", "0.5"]


def test_setting(chain):
    chain.settings = ["test.nms_thresh", "0.9"]


test_setting.__test__ = False
AFTER_PRM = {"train", *of("clusters", NAMES[:3]), *of("detections")}
CHANGES = {
    label: {"prm", *AFTER_PRM},
    image: {"proposals b.png", "prm", *AFTER_PRM},
    image_without_label: {"proposals d.png", "detections d.png"},
    label_of_one_without: {"prm", "clusters d.png", *AFTER_PRM},
    proposal_setting: {*of("proposals"), *AFTER_PRM},
    imported_proposals: {"proposals c.png", "clusters c.png", "train", *of("detections")},
    peaks: AFTER_PRM,
    prm: {"prm", *AFTER_PRM},
    weights: {"train", *of("detections")},
    mining_setting: {"train", *of("detections")},
    test_setting: of("detections"),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_one_change(finished, change, tmp_path, monkeypatch):
    imports = change is imported_proposals
    place = tmp_path / "place"
    shutil.copytree(finished[imports], place)
    chain = Chain(imports)
    monkeypatch.chdir(place)
    change(chain)
    assert chain.run() == CHANGES[change]
    assert chain.run() == set()
    now = chain.results()
    for result in ("data", "run", "labels.json"):
        path = Path(result)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    chain.run()
    assert chain.results() == now


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of the finished chain to work in."""
    shutil.copytree(finished[False], tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return Chain()


def test_another_export_with_the_same_names(place, capfd):
    """Another folder of images, whose json and files are called like those of the first."""
    for seed, name in enumerate(NAMES):
        draw(name, 20 + seed)
    for command in (
        ["train_net", "--output", "other", "--cfg", "chain.yaml"],
        ["test_net", "--run", "run"],
    ):
        assert tool(command[0])([*DATA, *command[1:]]) == 2
        told = capfd.readouterr().err
        assert "images were made from other images: a.png, b.png, c.png" in told, command
        assert "make them with tools/proposals.py make" in told
    assert tool("prm clusters")([*DATA, "--cfg", "chain.yaml"]) == 2
    assert "proposals of 3 of 3 images were made from other images" in capfd.readouterr().err
    assert place.run() == ALL
    now = place.results()
    shutil.rmtree("data")
    shutil.rmtree("run")
    place.run()
    assert place.results() == now


def test_the_same_files_elsewhere_and_later_are_the_same_images(place):
    shutil.rmtree("data/fingerprints")
    Path("images").rename("moved")
    shutil.copytree("moved", "images", copy_function=shutil.copy)  # with other times
    assert place.run() == set()


def test_testing_again_after_other_proposals(place, capfd):
    before = Path("run/test/mine/detections.json").read_bytes()
    few = ["--cfg", "chain.yaml", "--set", "proposals.max_proposals", "5"]
    assert tool("proposals make")([*DATA, "--jobs", "1", *few]) == 0
    capfd.readouterr()
    assert tool("test_net")([*DATA, "--run", "run", "--device", "cpu"]) == 0
    told = capfd.readouterr().err
    assert "out of date: 4 of 4 images, proposals or labels changed" in told
    assert "complete already" not in told
    assert Path("run/test/mine/detections.json").read_bytes() != before
    # Training on, or on clusters of the other proposals, is refused.
    assert tool("train_net")([*DATA, "--output", "run", *few]) == 2
    told = capfd.readouterr().err
    assert "clusters of 3 of 3 images were made from other proposals" in told


def test_hours_of_training_are_not_thrown_away_unasked(place, capfd):
    label(place)
    cpu = ["--device", "cpu", "--cfg", "chain.yaml"]
    assert tool("prm train")([*DATA, *cpu]) == 2
    assert "image_labels changed; give --overwrite" in capfd.readouterr().err
    assert tool("train_net")([*DATA, *cpu, "--output", "run"]) == 2
    assert "clusters of 1 of 3 images were made from other image labels" in capfd.readouterr().err
    assert tool("prm train")([*DATA, *cpu, "--overwrite"]) == 0
    assert tool("train_net")([*DATA, *cpu, "--output", "run"]) == 2
    told = capfd.readouterr().err
    assert "clusters of 3 of 3 images were made from other PRM weights" in told or "labels" in told
    assert tool("prm clusters")([*DATA, *cpu]) == 0
    assert tool("train_net")([*DATA, *cpu, "--output", "run"]) == 2
    told = capfd.readouterr().err
    assert "begun with other settings or data: data.image_labels changed; data.clusters" in told
    assert "name another --output" in told and "--overwrite to begin anew" in told
    assert tool("train_net")([*DATA, *cpu, "--output", "other"]) == 0
    assert "data.image_labels" not in capfd.readouterr().err


def test_pseudo_labels_are_of_the_labels_that_there_are(place, capfd, monkeypatch):
    masks = [*DATA, "--run", "run", "--image-labels", "--device", "cpu"]
    pseudo = [*DATA, "--run", "run", "--score-thresh", "0"]
    assert tool("test_net")(masks) == 0 and tool("generate_pseudo_labels")(pseudo) == 0
    label(place)
    assert tool("generate_pseudo_labels")(pseudo) == 2
    assert "made for other image labels than mine.json has now" in capfd.readouterr().err
    assert tool("test_net")(masks) == 0
    assert "out of date: 1 of 4 images, proposals or labels changed" in capfd.readouterr().err
    assert tool("generate_pseudo_labels")(pseudo) == 0
    found = read_json("run/pseudo_labels/mine.json")["annotations"]
    assert {(a["image_id"], a["category_id"]) for a in found} == {(0, 7), (1, 7), (2, 8)}


def in_this_process(command, log=None):
    return importlib.import_module(f"tools.{Path(command[0]).stem}").main(command[1:]) or 0


def test_a_json_that_is_corrected_in_place(place, capfd, monkeypatch):
    steps = ("proposals", "prm", "clusters", "train", "masks", "pseudo_labels", "gallery")
    monkeypatch.setattr(runner, "run_tool", in_this_process)
    monkeypatch.setattr(label_my_images, "FEWEST_PRM_UPDATES", 2)
    monkeypatch.setattr(label_my_images, "estimate_seconds", lambda *_: dict.fromkeys(steps, 1.0))

    def masks(output="out"):
        """(image id, category id, segmentation) of all masks."""
        options = ["--output", output, "--cfg", "chain.yaml", "--updates", "4"]
        cpu = ["--score-thresh", "0", "--device", "cpu", "--threads", "1"]
        capfd.readouterr()
        assert tool("label_my_images")([*DATA, *options, *cpu]) == 0
        found = read_json(f"{output}/pseudo_labels.json")["annotations"]
        return {(a["image_id"], a["category_id"], str(a["segmentation"])) for a in found}

    first = masks()
    assert {found[:2] for found in first} == {(0, 7), (1, 8), (2, 8)}
    assert masks() == first
    write_labels(1, 0, 0)  # every category_id is 15 - category_id
    monkeypatch.setattr(label_my_images, "AN_HOUR", 0.0)
    with pytest.raises(SystemExit) as stopped:
        masks()
    assert stopped.value.code == 2
    assert "image_labels changed; give --overwrite to train anew" in capfd.readouterr().err
    monkeypatch.setattr(label_my_images, "AN_HOUR", 3600.0)
    second = masks()
    assert "image_labels changed; trained anew" in capfd.readouterr().err
    assert {found[:2] for found in second} == {(0, 8), (1, 7), (2, 7)}
    assert second == masks("fresh")


def test_what_is_made_with_sam_says_that_masks_were_seen(place, tmp_path):
    """And no longer, once all is made anew with the built-in generator; its PRM gives points."""
    pytest.importorskip("transformers")
    folder = save_tiny("sam", tmp_path / "tiny-sam")
    words = ["model", str(folder), "points_per_side", "4", "pred_iou_thresh", "0"]
    words += ["stability_thresh", "0", "max_iou", "0.95", "min_area", "4"]
    named = [f"proposals.sam.{word}" if n % 2 == 0 else word for n, word in enumerate(words)]

    def told():
        checkpoint = load_checkpoint(Path("run/ckpt/model_step4.pth"))["made_from"]
        detections = read_json("run/test/mine/detections.made_from.json")["made_from"]
        labels = read_json("labels.json")["info"]
        return [record.get("masks_seen") for record in (checkpoint, detections, labels)]

    place.settings = ["proposals.generator", "sam", *named]
    assert place.run() == ALL - {"prm"}
    seen = ["tiny-sam was trained with masks"]
    assert told() == [seen, seen, seen]
    place.settings += ["proposals.sam.prm", "data/prm/mine.pth", "proposals.sam.peaks", "3"]
    assert place.run() > of("proposals")
    assert place.run() == set()
    assert told() == [seen, seen, seen]
    place.settings = []
    assert "train" in place.run()
    assert told() == [None, None, None]
