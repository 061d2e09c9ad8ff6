"""The published trunks: names, trainable sets, resolution, slow twins, and weights from files."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models

from lib.modeling.backbones import BACKBONES, build_backbone, read_state_dict
from lib.modeling.backbones.hrnet import HRNet
from lib.modeling.backbones.vgg import VGG

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
NARROW = (4, 4, 8, 8, 8)
"""Widths of a small VGG."""


def randomise(module, seed=0):
    """Weights under which no part of a trunk can be left out or swapped unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            else:
                tensor.copy_(0.1 * noise + (0 if name.endswith(("bias", "mean")) else 1))
    return module


@pytest.fixture(scope="module")
def small_hrnet():
    return randomise(HRNet(width=4, depths=(1, 2, 2), blocks=1)).eval()


@pytest.mark.parametrize("name", ["vgg16", "hrnet48"])
def test_names_shapes_order_and_trainable_set_are_the_published_ones(name):
    golden = json.loads((GOLDEN / f"{name}_state_dict.json").read_text())
    prefix = "Conv_Body."
    with torch.device("meta"):
        trunk = build_backbone(name)
    expected = {k: v for k, v in golden["state_dict"].items() if k.startswith(prefix)}
    mine = {prefix + k: list(v.shape) for k, v in trunk.state_dict().items()}
    assert mine == expected
    assert list(mine) == list(expected)
    trainable = {prefix + k for k, p in trunk.named_parameters() if p.requires_grad}
    assert trainable == {k for k in golden["trainable"] if k.startswith(prefix)}


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [("vgg16", 512, 8), ("hrnet48", 2048, 32), ("resnet50", 1024, 16)],
)
def test_channels_and_stride_of_the_published_trunks(name, channels, stride):
    with torch.device("meta"):
        trunk = build_backbone(name)
        features = trunk(torch.empty(1, 3, 4 * stride, 6 * stride))
    assert (trunk.out_channels, trunk.stride) == (channels, stride)
    assert features.shape == (1, channels, 4, 6)


def test_all_published_trunks_are_registered():
    assert {"resnet18", "resnet50", "vgg16", "hrnet48"} <= set(BACKBONES)


# VGG


def torchvision_vgg(**args):
    """torchvision's VGG-16, changed as the paper says: no pooling after sections 4 and 5 and
    a dilation of 2 in section 5."""
    features = models.vgg16(weights=None).features
    for index in (24, 26, 28):
        features[index].dilation = features[index].padding = (2, 2)
    return nn.Sequential(*(m for i, m in enumerate(features) if i not in (23, 30))), features


def test_vgg_computes_what_torchvision_does_with_its_weights():
    twin, features = torchvision_vgg()
    randomise(features)
    trunk = VGG()
    trunk.load_weights({f"features.{k}": v for k, v in features.state_dict().items()})
    images = torch.randn(2, 3, 37, 51)  # neither side a multiple of the stride
    with torch.no_grad():
        assert torch.allclose(trunk(images), twin(images), atol=1e-5)
        assert trunk(images).shape == (2, 512, 37 // 8, 51 // 8)


def test_vgg_trains_conv3_to_conv5_only():
    trunk = randomise(VGG(NARROW)).train()
    trunk(torch.randn(1, 3, 24, 32)).sum().backward()
    for name, parameter in trunk.named_parameters():
        assert (parameter.grad is not None) == (name[:5] in ("conv3", "conv4", "conv5")), name


def test_vgg_needs_five_widths():
    with pytest.raises(ValueError, match=r"model\.backbone_args.*5 widths"):
        build_backbone("vgg16", {"widths": (8, 8)})


# HRNet


def literal_hrnet(weights, images, depths, blocks):
    """HRNet in loops over the names of its state dict, without a module."""

    def conv(x, name, stride=1):
        weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        return functional.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def bn(x, name):
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale = weights[f"{name}.weight"] / torch.sqrt(var + 1e-5)
        shift = weights[f"{name}.bias"] - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def block(x, name, convs):
        y = x
        for i in range(1, convs + 1):
            y = bn(conv(y, f"{name}.conv{i}"), f"{name}.bn{i}")
            y = torch.relu(y) if i < convs else y
        if f"{name}.downsample.0.weight" in weights:
            x = bn(conv(x, f"{name}.downsample.0"), f"{name}.downsample.1")
        return torch.relu(x + y)

    def module(maps, name):
        maps = list(maps)
        for i in range(len(maps)):
            for b in range(blocks):
                maps[i] = block(maps[i], f"{name}.branches.{i}.{b}", convs=2)
        out = []
        for i in range(len(maps)):
            total = torch.zeros_like(maps[i])
            for j, x in enumerate(maps):
                fuse = f"{name}.fuse_layers.{i}.{j}"
                if j > i:
                    x = bn(conv(x, f"{fuse}.0"), f"{fuse}.1")
                    x = x.repeat_interleave(2 ** (j - i), -1).repeat_interleave(2 ** (j - i), -2)
                for step in range(i - j):
                    x = bn(conv(x, f"{fuse}.{step}.0", stride=2), f"{fuse}.{step}.1")
                    x = torch.relu(x) if step < i - j - 1 else x
                total = total + x
            out.append(torch.relu(total))
        return out

    def unit(x, name, stride):
        return torch.relu(bn(conv(x, f"{name}.0", stride), f"{name}.1"))

    height, width = images.shape[-2:]
    x = torch.zeros(len(images), 3, -(-height // 32) * 32, -(-width // 32) * 32)
    x[..., :height, :width] = images
    x = torch.relu(bn(conv(x, "conv1", 2), "bn1"))
    x = torch.relu(bn(conv(x, "conv2", 2), "bn2"))
    for b in range(blocks):
        x = block(x, f"layer1.{b}", convs=3)
    maps = [unit(x, "transition1.0", 1), unit(x, "transition1.1.0", 2)]
    for stage, depth in zip((2, 3, 4), depths, strict=True):
        if stage > 2:
            new = f"transition{stage - 1}.{stage - 1}.0"
            maps.append(unit(maps[-1], new, 2))
        for m in range(depth):
            maps = module(maps, f"stage{stage}.{m}")
    y = block(maps[0], "incre_modules.0.0", convs=3)
    for i in range(3):
        y = block(maps[i + 1], f"incre_modules.{i + 1}.0", convs=3) + unit(
            y, f"downsamp_modules.{i}", 2
        )
    return torch.relu(bn(conv(y, "final_layer.0"), "final_layer.1"))


@pytest.mark.parametrize("size", [(64, 32), (33, 70)])
def test_hrnet_is_the_literal_network(small_hrnet, size):
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = literal_hrnet(small_hrnet.state_dict(), images, depths=(1, 2, 2), blocks=1)
        features = small_hrnet(images)
    assert features.shape == (1, 2048, -(-size[0] // 32), -(-size[1] // 32))
    assert expected.abs().mean() > 1e-3
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_hrnet_pads_with_zeros_at_the_right_and_at_the_bottom(small_hrnet):
    images = torch.randn(1, 3, 40, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :40, :50] = images
    shifted = torch.zeros(1, 3, 64, 64)
    shifted[..., 24:, 14:] = images
    with torch.no_grad():
        features = small_hrnet(images)
        assert torch.equal(features, small_hrnet(padded))
        assert not torch.allclose(features, small_hrnet(shifted), atol=1e-3)


def test_hrnet_batch_norms_keep_their_statistics_in_training():
    trunk = randomise(HRNet(width=4, depths=(1, 1, 1), blocks=1)).train()
    before = {k: v.clone() for k, v in trunk.state_dict().items() if "running" in k}
    trunk(torch.randn(1, 3, 32, 64))
    assert all(torch.equal(trunk.state_dict()[k], v) for k, v in before.items())


def test_hrnet_parts_that_get_no_gradient_are_the_published_ones():
    trunk = randomise(HRNet(width=4, depths=(1, 1, 1), blocks=1)).train()
    trunk(torch.randn(1, 3, 64, 64)).sum().backward()
    parameters = dict(trunk.named_parameters())
    without = {k.split(".")[0] for k, p in parameters.items() if p.grad is None}
    frozen = {k.split(".")[0] for k, p in parameters.items() if not p.requires_grad}
    assert frozen == {"conv1", "conv2", "layer1", "stage2"}
    # PARITY: these count as trainable and never see a gradient.
    assert without - frozen == {"bn1", "bn2", "transition1", "classifier"}
    with_gradient = {k.split(".")[0] for k, p in parameters.items() if p.grad is not None}
    assert not with_gradient & without


# Weights from files


def vgg_layouts():
    trunk = randomise(VGG(NARROW))
    own = trunk.state_dict()
    indices = iter([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28])
    index = {name.rsplit(".", 1)[0]: next(indices) for name in own if name.endswith("weight")}
    features, detectron, caffe = {}, {}, {}
    for name, tensor in own.items():
        layer, kind = name.rsplit(".", 1)
        features[f"features.{index[layer]}.{kind}"] = tensor
        section, number = re.fullmatch(r"conv(\d)\.(\d)", layer).groups()
        detectron[f"conv{section}_{int(number) // 2 + 1}_{kind[0]}"] = tensor
        caffe[f"conv{section}_{int(number) // 2 + 1}.{kind}"] = tensor
    features |= {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    detectron |= {"fc6_w": torch.zeros(2, 2), "pred_b": torch.zeros(2)}
    return own, {"features": features, "detectron": detectron, "caffe": caffe, "own": own}


@pytest.mark.parametrize("layout", ["features", "detectron", "caffe", "own"])
@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
@pytest.mark.parametrize("new_format", [True, False])
def test_vgg_reads_every_layout(tmp_path, layout, wrapped, new_format):
    own, layouts = vgg_layouts()
    content = {"model": {f"module.Conv_Body.{k}": v for k, v in layouts[layout].items()}, "step": 3}
    if wrapped != "model":
        content = {wrapped: layouts[layout]} if wrapped else layouts[layout]
    path = tmp_path / "vgg.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    trunk = VGG(NARROW)
    trunk.load_weights(read_state_dict(path), str(path))
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, own[name]), name


def test_hrnet_reads_its_classification_checkpoint(tmp_path, small_hrnet):
    path = tmp_path / "hrnet.pth"
    torch.save({f"module.{k}": v for k, v in small_hrnet.state_dict().items()}, path)
    trunk = HRNet(width=4, depths=(1, 2, 2), blocks=1)
    trunk.load_weights(read_state_dict(path), str(path))
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, small_hrnet.state_dict()[name]), name


def test_weights_that_do_not_fit_are_listed(small_hrnet):
    _, layouts = vgg_layouts()
    weights = dict(layouts["features"])
    del weights["features.28.bias"]
    weights["features.0.weight"] = torch.zeros(9, 3, 3, 3)
    with pytest.raises(ValueError) as error:
        VGG(NARROW).load_weights(weights, "vgg.pth")
    for part in (
        "vgg.pth",
        "1 missing (conv5.4.bias)",
        "conv1.0.weight (9, 3, 3, 3)",
        "(4, 3, 3, 3)",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"missing .* more"):
        VGG(NARROW).load_weights(small_hrnet.state_dict())


def test_imagenet_weights_come_from_torchvision_or_the_error_says_where_from(monkeypatch):
    asked = []

    def offline(self, **_):
        asked.append(self)
        raise OSError("no network")

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", offline)
    for name, weights in [
        ("vgg16", models.VGG16_Weights.IMAGENET1K_V1),
        ("resnet50", models.ResNet50_Weights.IMAGENET1K_V1),
    ]:
        with torch.device("meta"):
            trunk = build_backbone(name)
        with pytest.raises(FileNotFoundError, match=r"get https://.*model\.weights"):
            trunk.imagenet_weights()
        assert asked.pop() is weights
    with torch.device("meta"):
        trunk = build_backbone("hrnet48")
    with pytest.raises(ValueError, match=r"hrnetv2_w48.*model\.weights"):
        trunk.imagenet_weights()
