"""The exported Mask R-CNN finds what torchvision's finds, in PyTorch and in onnxruntime."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou

from lib.config import Config, config_from, save_config
from lib.data.images import read_image
from lib.data.transforms import normalise, resize_long_side
from lib.engine.checkpoint import MADE_FROM, save_checkpoint
from lib.modeling.backbones import build_backbone
from lib.provenance import fingerprint
from lib.refine import onnx_export
from lib.refine.onnx_export import TraceableMaskRCNN, pad_statically
from tests.refine.test_mask_rcnn import SMALL, small
from tests.small_training import tool

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e .[export]")
ROOT = Path(__file__).parents[2]
NAMES = ["cat", "köttur", "dog"]
SIZES = [((70, 100), (140, 200)), ((33, 97), (50, 60)), ((64, 64), (64, 64)), ((1, 40), (3, 80))]
CLOSE = 1e-3
SEEN = {"masks_seen": ["sam was trained with masks"]}


def trained():
    """A network whose scores lie far apart, as after a training."""
    model = small(3).eval()
    torch.manual_seed(1)
    for parameter in model.roi_heads.box_predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.5)
    model.roi_heads.detections_per_img = 7
    return model


def noise(height, width):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(height))


@torch.no_grad()
def by_torchvision(model, image, size):
    """boxes, labels, scores, and the probabilities of the masks, at `size`."""
    (found,) = model([image])
    (height, width), (h, w) = size, image.shape[1:]
    boxes = found["boxes"] * torch.tensor([width / w, height / h] * 2)
    masks = paste_masks_in_image(found["masks"], boxes, size)[:, 0]
    return [v.numpy() for v in (boxes, found["labels"] - 1, found["scores"], masks)]


def assert_alike(found, expected):
    boxes, labels, scores, masks = found
    assert len(boxes) == len(expected[0])
    np.testing.assert_allclose(boxes, expected[0], atol=CLOSE)
    assert labels.tolist() == expected[1].tolist()
    np.testing.assert_allclose(scores, expected[2], atol=CLOSE)
    assert masks.shape == expected[3].shape
    sure = np.abs(expected[3] - 0.5) > CLOSE
    assert (masks == (expected[3] > 0.5))[sure].all()


@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_the_graph_is_torchvisions(size, wanted):
    model, image = trained(), noise(*size)
    expected = by_torchvision(model, image, wanted)
    assert len(expected[0]) == 7
    assert 0 < expected[3].mean() < 1
    with torch.no_grad():
        found = TraceableMaskRCNN(model, 0.5)(image, torch.tensor(wanted))
    assert_alike([v.numpy() for v in found], expected)


def test_one_pyramid_level():
    model = small(3, backbone_args={"widths": [4, 4, 8, 8], "strides": [1, 1, 1, 1]}).eval()
    assert len(model.roi_heads.box_roi_pool.scales) == 1
    model.roi_heads.score_thresh = 0.3
    expected = by_torchvision(model, noise(50, 40), (50, 40))
    assert len(expected[0])
    with torch.no_grad():
        found = TraceableMaskRCNN(model, 0.5)(noise(50, 40), torch.tensor([50, 40]))
    assert_alike([v.numpy() for v in found], expected)


def test_classes_do_not_suppress_each_other():
    """Boxes that do not depend on the class, so that those of two classes lie on each other."""
    model = trained()
    torch.nn.init.zeros_(model.roi_heads.box_predictor.bbox_pred.weight)
    torch.nn.init.zeros_(model.roi_heads.box_predictor.bbox_pred.bias)
    model.roi_heads.detections_per_img = 50
    expected = by_torchvision(model, noise(70, 100), (70, 100))
    same = box_iou(*[torch.from_numpy(expected[0])] * 2) > 0.9
    assert same.sum() > len(same)
    with torch.no_grad():
        found = TraceableMaskRCNN(model, 0.5)(noise(70, 100), torch.tensor([70, 100]))
    assert_alike([v.numpy() for v in found], expected)


def test_convolutions_of_tensorflow_get_a_fixed_padding():
    options = {"name": "tf_mobilenetv3_small_minimal_100"}
    backbone = build_backbone("timm", options, use="pyramid").eval()
    kinds = {type(module).__name__ for module in backbone.modules()}
    padded = pad_statically(backbone)
    assert kinds - {type(module).__name__ for module in padded.modules()} == {"Conv2dSame"}
    assert kinds == {type(module).__name__ for module in backbone.modules()}
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, two in zip(padded.compute(images), backbone.compute(images), strict=True):
            assert torch.equal(one, two)


def test_masks_are_pasted_like_torchvisions():
    rng = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 28, 28, generator=rng)
    boxes = torch.rand(6, 4, generator=rng) * 40
    boxes[:, 2:] += boxes[:, :2]
    boxes[0] = torch.tensor([-9.0, -7.0, 12.0, 90.0])  # beyond the image
    boxes[1] = torch.tensor([3.2, 4.1, 3.3, 4.2])  # less than a pixel
    expected = paste_masks_in_image(masks[:, None], boxes, (60, 50))[:, 0]
    torch.testing.assert_close(
        onnx_export.paste_masks(masks, boxes, 60, 50), expected, rtol=0, atol=1e-5
    )
    assert onnx_export.paste_masks(masks[:0], boxes[:0], 6, 5).shape == (0, 6, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a Mask R-CNN that finds its thresholds in its configuration, and the network."""
    folder = tmp_path_factory.mktemp("onnx") / "mask_rcnn"
    model = trained()
    config = config_from({"refine": {"model": SMALL, "input": {"test_scale": 96}}}, "here")
    content = {"model": model.state_dict(), "step": 7, "class_names": NAMES, MADE_FROM: SEEN}
    save_checkpoint(folder / "ckpt", content)
    save_config(config, folder / "config.yaml")
    return folder, model


@pytest.fixture(scope="module")
def exported(run):
    """(path of the file, the network)"""
    folder, model = run
    words = ["--run", str(folder), "--set", "refine.test.detections_per_image", "7"]
    assert tool("export onnx")(words) == 0
    return folder / "mask_rcnn.onnx", model


def test_onnxruntime_finds_the_same_at_any_size(exported):
    path, model = exported
    session = onnxruntime.InferenceSession(path)
    for size, wanted in [*SIZES, ((224, 31), (224, 31))]:
        image = noise(*size)
        given = {"image": image.numpy(), "size": np.array(wanted)}
        found = session.run(["boxes", "labels", "scores", "masks"], given)
        assert found[3].dtype == bool
        assert_alike(found, by_torchvision(model, image, wanted))


def test_an_image_with_nothing_in_it(exported):
    path, _ = exported
    session = onnxruntime.InferenceSession(path)
    nothing = np.full((3, 64, 64), np.nan, np.float32)  # no score is above the threshold
    boxes, labels, scores, masks = session.run(None, {"image": nothing, "size": np.array([9, 8])})
    assert (boxes.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))
    assert masks.shape == (0, 9, 8)


def test_what_the_file_says(exported):
    path, model = exported
    about = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    about = {key: json.loads(value) for key, value in about.items()}
    assert about == {
        "class_names": NAMES,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "long_side": 96,
        "made_from": {"weights": fingerprint(model.state_dict()), "step": 7, **SEEN},
    }
    assert str(ROOT).encode() not in path.read_bytes()  # no traces of this machine


NO_TORCH = """
import sys
sys.modules.update(torch=None, torchvision=None, lib=None)  # importing them fails
"""


def test_the_example_runs_without_torch(exported, tmp_path):
    path, model = exported
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(256, size=(9, 12, 3), dtype=np.uint8), (150, 111))
    cv2.imwrite(str(tmp_path / "image.jpg"), pixels)
    (tmp_path / "mask_rcnn.onnx").symlink_to(path)
    page = (ROOT / "docs/export.md").read_text()
    (example,) = re.findall(r"```python\n(import json.*?)```", page, re.DOTALL)
    assert example.count("\n") <= 16
    example += "\nnp.savez('found.npz', boxes=boxes, labels=labels, scores=scores, masks=masks)"
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH + example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    image = read_image(tmp_path / "image.jpg")
    small_image, _ = resize_long_side(image, 96)
    expected = by_torchvision(model, normalise(small_image), image.shape[:2])
    with np.load(tmp_path / "found.npz") as found:
        assert_alike([found[name] for name in onnx_export.OUTPUTS], expected)
    assert len(done.stdout.splitlines()) == len(expected[0]) > 0


def test_missing_packages_are_named(run, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    assert tool("export onnx")(["--run", str(run[0])]) == 2
    assert "onnx and onnxscript missing; pip install -e .[export]" in capsys.readouterr().err


def test_cim_is_not_exported(tmp_path, capsys):
    save_checkpoint(tmp_path / "ckpt", {"model": {"body.weight": torch.zeros(1)}, "step": 1})
    save_config(Config(), tmp_path / "config.yaml")
    assert tool("export onnx")(["--run", str(tmp_path)]) == 2
    assert "not a Mask R-CNN, the only network that is exported" in capsys.readouterr().err
