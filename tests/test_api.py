"""The Python API finds what tools/test_net.py finds, and says what it cannot take."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lib.api import CIM, Prediction, as_rgb
from lib.config import ConfigError, load_config, save_config
from lib.data.coco import CocoImages
from lib.data.shapes import make_shapes
from lib.engine.checkpoint import CheckpointError, save_checkpoint
from lib.modeling.model_builder import build_model
from lib.proposals.generate import generate_proposals
from lib.proposals.rle import rle_to_mask
from lib.proposals.store import ProposalStore

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two images of shapes with proposals, and a run whose network has random weights."""
    root = tmp_path_factory.mktemp("api")
    make_shapes(root, seed=2, num_images={"train": 1, "val": 1, "test": 2})
    coco = CocoImages(root / "shapes/annotations/test.json")
    overrides = ["proposals.max_proposals", "25", "test.scales", "[96, 128]"]
    config = load_config(ROOT / "configs/resnet18_shapes.yaml", overrides)
    torch.manual_seed(4)
    model = build_model(config.model, coco.num_classes, pretrained=False)
    for parameter in model.cls_iou_model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    content = {
        "model": model.state_dict(),
        "step": 7,
        "class_names": coco.class_names,
        "config": config.model_dump(mode="json"),
    }
    run = root / "run"
    save_checkpoint(run / "ckpt", content)
    save_config(config, run / "config.yaml")
    store = ProposalStore(root / "proposals/shapes_test")
    for record in coco.images:
        image = as_rgb(root / "shapes/test" / record.file_name)
        store.save(record.file_name, generate_proposals(image, 25, **config.proposals.options))
    return root, run, coco, store, content


def test_net(*words):
    spec = importlib.util.spec_from_file_location("test_net", ROOT / "tools/test_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(list(words)) == 0


test_net.__test__ = False


@pytest.mark.parametrize("known", [False, True], ids=["all classes", "image labels"])
@pytest.mark.parametrize("tta", [True, False])
@pytest.mark.parametrize("made_here", [True, False])
def test_equal_to_test_net(world, tmp_path, known, tta, made_here):
    root, run, coco, store, _ = world
    output = tmp_path / "detections.json"
    options = ["--image-labels"] * known + ["--tta", "none"] * (not tta)
    data = ["--dataset", "shapes_test", "--data-root", str(root)]
    test_net("--run", str(run), *data, "--output", str(output), "--threads", "1", *options)
    expected = json.loads(output.read_text())
    cim = CIM.load(run, device="cpu")
    for record in coco.images:
        of_image = [entry for entry in expected if entry["image_id"] == record.image_id]
        labels = np.flatnonzero(record.image_labels).tolist() if known else None
        proposals = None if made_here else store.load(record.file_name)
        image = root / "shapes/test" / record.file_name
        found = cim.predict(image, proposals, labels, tta=tta)
        assert len(found) == len(of_image) > 3
        assert [coco.category_ids[c] for c in found.labels] == [e["category_id"] for e in of_image]
        np.testing.assert_allclose(found.scores, [e["score"] for e in of_image], rtol=1e-5)
        for mask, box, entry in zip(found.masks, found.boxes, of_image, strict=True):
            assert np.array_equal(mask, rle_to_mask(entry["segmentation"]))
            x, y, width, height = entry["bbox"]
            assert box.tolist() == [x, y, x + width, y + height]


def test_the_precision_of_the_run_is_used(world, tmp_path):
    root, run, coco, store, _ = world
    words = ["runtime.precision", "bfloat16"]
    output = tmp_path / "detections.json"
    data = ["--dataset", "shapes_test", "--data-root", str(root), "--threads", "1"]
    test_net("--run", str(run), *data, "--output", str(output), "--set", *words)
    expected = json.loads(output.read_text())
    record = coco.images[0]
    image, proposals = root / "shapes/test" / record.file_name, store.load(record.file_name)
    cim = CIM.load(run, config=load_config(run / "config.yaml", words), device="cpu")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in cim.model.modules())
    scores = cim.predict(image, proposals).scores
    of_image = [entry["score"] for entry in expected if entry["image_id"] == record.image_id]
    np.testing.assert_allclose(scores, of_image, rtol=1e-5)
    exact = CIM.load(run, device="cpu").predict(image, proposals).scores
    assert exact.tolist() != scores.tolist()


def test_images_and_proposals_come_in_any_form(world):
    root, run, coco, store, _ = world
    cim = CIM.load(run, device="cpu")
    record = coco.images[0]
    path = root / "shapes/test" / record.file_name
    with Image.open(path) as image:
        image.load()
    proposals = store.load(record.file_name)
    wanted = cim.predict(path, proposals, tta=False)
    for same_image in (str(path), image, np.array(image)):
        for same in (proposals, proposals.regions, proposals.regions.masks()):
            found = cim.predict(same_image, same, tta=False)
            assert np.array_equal(found.proposal_idx, wanted.proposal_idx)
            assert np.array_equal(found.scores, wanted.scores)
    assert np.array_equal(wanted.masks, proposals.regions.masks()[wanted.proposal_idx])
    assert wanted.names == [coco.class_names[c] for c in wanted.labels]
    few = cim.predict(image, proposals, score_thresh=float(wanted.scores[2]), tta=False)
    assert few.scores.tolist() == wanted.scores[:2].tolist()
    assert few.draw().shape[2] == 3
    assert not np.array_equal(few.draw()[:: few.draw().shape[0] // 128], few.image)


def test_nothing_to_find(world):
    root, run, coco, _, _ = world
    cim = CIM.load(run, device="cpu")
    found = cim.predict(np.zeros((20, 30, 3), np.uint8), np.zeros((0, 20, 30), bool))
    shapes = [found.boxes.shape, found.labels.shape, found.scores.shape, found.masks.shape]
    assert shapes == [(0, 4), (0,), (0,), (0, 20, 30)]
    assert len(found) == 0
    assert found.names == []
    everything = cim.predict(np.zeros((20, 30), np.uint8), score_thresh=2.0)
    assert len(everything) == 0


def fields(found):
    names = ("boxes", "labels", "scores", "masks", "proposal_idx", "image")
    return [getattr(found, name) for name in names]


def test_to_supervision_and_back(world):
    supervision = pytest.importorskip("supervision", reason="pip install -e .[supervision]")
    root, run, coco, _, _ = world
    path = root / "shapes/test" / coco.images[0].file_name
    cim = CIM.load(run, device="cpu")
    found = cim.predict(path, tta=False)
    assert len(found) > 3
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.data["class_name"].tolist() == found.names
    assert detections[detections.class_id == found.labels[0]].confidence[0] == found.scores[0]
    back = Prediction.from_supervision(detections[::-1], path, cim.class_names)
    assert back.class_names == found.class_names
    for one, two in zip(fields(back), fields(found), strict=True):
        assert one.dtype == two.dtype
        assert np.array_equal(one, two)
    del detections.data["proposal_idx"]  # somebody else's
    back = Prediction.from_supervision(detections, path, cim.class_names)
    assert set(back.proposal_idx) == {-1}

    nothing = cim.predict(path, score_thresh=2.0, tta=False)
    for empty in (nothing.to_supervision(), supervision.Detections.empty()):
        back = Prediction.from_supervision(empty, path, cim.class_names)
        for one, two in zip(fields(back), fields(nothing), strict=True):
            assert one.dtype == two.dtype
            assert one.shape == two.shape

    with pytest.raises(ValueError, match="masks of .* pixels for an image of 9x9"):
        Prediction.from_supervision(detections, np.zeros((9, 9, 3), np.uint8), cim.class_names)
    with pytest.raises(ValueError, match="class ids .*; 1 class names were given"):
        detections.class_id[0] = 1
        Prediction.from_supervision(detections, path, ["cat"])
    with pytest.raises(ValueError, match="needs a mask, a confidence"):
        Prediction.from_supervision(supervision.Detections(detections.xyxy), path, ["cat"])


def test_without_supervision(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    cim = CIM.load(world[1], device="cpu")
    found = cim.predict(np.zeros((20, 30, 3), np.uint8), np.zeros((0, 20, 30), bool))
    with pytest.raises(ImportError, match=r"pip install -e \.\[supervision\]"):
        found.to_supervision()


def test_image_labels_by_name(world):
    root, run, coco, _, _ = world
    cim = CIM.load(run, device="cpu")
    image = root / "shapes/test" / coco.images[0].file_name
    name = coco.class_names[2]
    assert set(cim.predict(image, image_labels=[name], tta=False).labels.tolist()) == {2}
    assert len(cim.predict(image, image_labels=[], tta=False)) == 0
    with pytest.raises(ValueError, match="no class 'cow'; there are"):
        cim.predict(image, image_labels=["cow"])
    with pytest.raises(ValueError, match="no class 5; there are"):
        cim.predict(image, image_labels=[5])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), "array of float32 and shape"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\); expected"),
        (np.zeros((0, 5, 3), np.uint8), "expected"),
        (Image.new("I;16", (4, 5)), "mode I;16 has more than 8 bits"),
        (7, "expected a path, a PIL image or an array, got int"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(ValueError, match=message):
        as_rgb(image)


def test_grey_and_transparent_images():
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert np.array_equal(as_rgb(grey), as_rgb(Image.fromarray(grey)))
    assert as_rgb(Image.new("RGBA", (5, 4))).shape == (4, 5, 3)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such image"):
        as_rgb("none.jpg")


def test_bad_proposals(world):
    _, run, _, _, _ = world
    cim = CIM.load(run, device="cpu")
    image = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match=r"shape \(1, 30, 20\) for an image of 20x30"):
        cim.predict(image, np.ones((1, 30, 20), bool))
    with pytest.raises(ValueError, match=r"of an image of \(20, 30\), this one is \(9, 9\)"):
        cim.predict(np.zeros((9, 9, 3), np.uint8), cim.propose(image))
    with pytest.raises(ValueError, match="1 proposals are empty, the first is number 1"):
        cim.predict(image, np.stack([np.ones((20, 30), bool), np.zeros((20, 30), bool)]))


def test_loading(world, tmp_path):
    root, run, coco, _, content = world
    checkpoint = run / "ckpt/model_step7.pth"
    assert CIM.load(checkpoint, device="cpu").class_names == tuple(coco.class_names)
    assert CIM.load(run, step=7, device="cpu").config == CIM.load(checkpoint, device="cpu").config
    with pytest.raises(FileNotFoundError, match="model_step8"):
        CIM.load(run, step=8)
    with pytest.raises(ValueError, match="step goes with the folder"):
        CIM.load(checkpoint, step=7)
    with pytest.raises(FileNotFoundError, match="none: no such checkpoint"):
        CIM.load(tmp_path / "none")
    with pytest.raises(ValueError, match="2 class names for its 5 classes"):
        CIM.load(run, class_names=["a", "b"])

    published = tmp_path / "published.pth"
    torch.save({"model": content["model"], "step": 7}, published)
    with pytest.raises(ConfigError, match="does not say what it was trained with; give config="):
        CIM.load(published)
    cim = CIM.load(published, config=run / "config.yaml", device="cpu")
    assert cim.class_names == tuple(f"class {n}" for n in range(5))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        CIM.load(published, config=load_config(None, ["model.backbone", "resnet18"]))
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of CIM"):
        CIM.load(tmp_path / "other.pth")
