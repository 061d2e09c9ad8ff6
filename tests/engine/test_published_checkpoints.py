"""Checkpoints in the layout of the published ones load strictly, without unpickling anything."""

import json
from math import prod
from pathlib import Path

import pytest
import torch

from lib.config import ModelConfig
from lib.engine.checkpoint import CheckpointError, load_checkpoint, load_model
from lib.modeling.model_builder import build_model

GOLDEN = Path(__file__).parents[1] / "golden" / "model"


def published_names(backbone):
    return json.loads((GOLDEN / f"{backbone}_state_dict.json").read_text())


def optimizer_state(names, trainable):
    """One group per kind of parameter, as older PyTorch numbered them: by address."""
    number = {name: 139_000_000_000_000 + 72 * i for i, name in enumerate(names)}
    buffers = {
        number[name]: {"momentum_buffer": torch.zeros(1).expand(names[name])} for name in trainable
    }
    groups = [
        {"lr": 2.5e-4, "params": [number[n] for n in trainable if not n.endswith("bias")]},
        {"lr": 5e-4, "params": [number[n] for n in trainable if n.endswith("bias")]},
    ]
    return {"state": buffers, "param_groups": groups}


def published_checkpoint(backbone, prefix=""):
    """Every name and shape of a published checkpoint; one stored number stands for a tensor."""
    golden = published_names(backbone)
    shapes = golden["state_dict"]
    model = {}
    for name, shape in shapes.items():
        whole = name.endswith("num_batches_tracked")
        value = torch.zeros((), dtype=torch.int64) if whole else torch.full((1,), 0.5)
        model[prefix + name] = value.expand(shape)
    return {
        "step": 89_999,
        "train_size": 21_164,
        "batch_size": 1,
        "model": model,
        "optimizer": optimizer_state(shapes, golden["trainable"]),
    }


def meta_model(backbone, num_classes=20):
    with torch.device("meta"):
        return build_model(ModelConfig(backbone=backbone), num_classes, pretrained=False)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("backbone", ["resnet50", "vgg16", "hrnet48"])
@pytest.mark.parametrize(("prefix", "new_format"), [("", True), ("module.", False)])
def test_a_published_checkpoint_loads_strictly(tmp_path, backbone, prefix, new_format):
    path = tmp_path / "model_step89999.pth"
    content = published_checkpoint(backbone, prefix)
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    loaded = load_checkpoint(path)
    assert (loaded["step"], loaded["train_size"], loaded["batch_size"]) == (89_999, 21_164, 1)
    model = meta_model(backbone)
    load_model(model, loaded["model"], path, num_classes=20)
    assert list(model.state_dict()) == list(published_names(backbone)["state_dict"])
    parameters = dict(model.named_parameters())
    assert (
        sum(prod(p.shape) for p in parameters.values()) == published_names(backbone)["num_params"]
    )
    trainable = {name for name, p in parameters.items() if p.requires_grad}
    assert trainable == set(published_names(backbone)["trainable"])


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16", "hrnet48"])
def test_every_value_arrives(tmp_path, backbone):
    """With narrow fully connected layers, but the whole trunk, and a number for every tensor."""
    config = ModelConfig(backbone=backbone, fuse_channels=4, hidden_dim=8)
    with torch.device("meta"):
        model = build_model(config, 20, pretrained=False)
    model.to_empty(device="cpu")
    saved = {
        name: torch.full(tensor.shape, number, dtype=tensor.dtype)
        for number, (name, tensor) in enumerate(model.state_dict().items(), start=1)
    }
    assert not any(name.startswith("module.") for name in saved)
    path = tmp_path / "model_step3.pth"
    torch.save({"step": 3, "model": {f"module.{k}": v for k, v in saved.items()}}, path)
    load_model(model, load_checkpoint(path)["model"], path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_a_checkpoint_of_another_backbone_is_refused_with_a_few_names(tmp_path):
    path = tmp_path / "model_step89999.pth"
    torch.save(published_checkpoint("resnet50"), path)
    with pytest.raises(CheckpointError) as error:
        load_model(meta_model("vgg16"), load_checkpoint(path)["model"], path)
    text = str(error.value)
    for part in ("model_step89999.pth", "Conv_Body.conv1.0.weight", "Conv_Body.res1.0.weight"):
        assert part in text
    assert "missing" in text and "unexpected" in text and "wrongly shaped" in text
    assert len(text) < 1500


def test_a_checkpoint_of_another_data_set_is_refused_in_words(tmp_path):
    path = tmp_path / "model_step89999.pth"
    torch.save(published_checkpoint("resnet50"), path)
    with pytest.raises(CheckpointError, match=r"20 classes.*80"):
        load_model(meta_model("resnet50", 80), load_checkpoint(path)["model"], path, 80)
