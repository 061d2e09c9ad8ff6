from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import ResNet50_Weights, resnet50

from lib.config import PRMConfig, load_config
from lib.modeling.backbones import build_backbone
from lib.prm.network import PeakResponseNet, build_prm, load_prm, prm_backbone

SMALL = {"widths": [4, 6, 8, 8], "depths": [1, 1, 1, 1], "strides": [1, 2, 1, 1]}


def small_net(num_classes: int = 3, **options) -> PeakResponseNet:
    torch.manual_seed(0)
    settings = PRMConfig(backbone="resnet18", backbone_args=SMALL, **options)
    return PeakResponseNet(num_classes, settings)


def randomise(net: nn.Module) -> None:
    """Fills every tensor, running statistics too."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith("var") else tensor.normal_(0, 0.1)


def test_resnet50_is_torchvisions_with_a_1x1_convolution():
    net = PeakResponseNet(4, PRMConfig()).eval()
    reference = resnet50(weights=None).eval()
    randomise(reference)
    names = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    state = net.state_dict()
    for name, tensor in reference.state_dict().items():
        part, rest = name.split(".", 1)
        if part != "fc":
            state[f"0.features.{names[part]}.{rest}"].copy_(tensor)
    images = torch.randn(1, 3, 64, 64)
    features = images
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        features = reference.get_submodule(name)(features)
    response = F.conv2d(features, net.classifier[0].weight, net.classifier[0].bias)
    expected = F.interpolate(response, size=(16, 16), mode="bilinear", align_corners=True)
    torch.testing.assert_close(net(images), expected)
    assert set(state) == {f"0.{name}" for name in net[0].state_dict()}


def test_every_parameter_of_a_net_in_training_gets_a_gradient():
    net = small_net(smooth=3).train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for name, value in net.named_buffers():  # batch norms see batches here, unlike in CIM
        assert not torch.equal(value, before[name]), name


def test_size_of_the_maps():
    net = small_net(upsample=4).eval()
    assert net(torch.randn(2, 3, 72, 56)).shape == (2, 3, 36, 28)
    assert small_net(upsample=1)(torch.randn(1, 3, 64, 64)).shape == (1, 3, 8, 8)


def test_smoothing_averages_cells_and_not_the_border():
    plain, smooth = small_net(upsample=1).eval(), small_net(upsample=1, smooth=3).eval()
    images = torch.randn(1, 3, 40, 48)
    cells = plain(images)
    averaged = smooth(images)
    torch.testing.assert_close(averaged[..., 2, 3], cells[..., 1:4, 2:5].mean(dim=(2, 3)))
    torch.testing.assert_close(averaged[..., 0, 0], cells[..., :2, :2].mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "vgg15"}, "prm.backbone: no backbone 'vgg15'; did you mean vgg16"),
        ({"backbone_args": {"widths": [4]}}, "prm.backbone_args do not fit resnet50: .*widths"),
        ({"backbone": "resnet18", "backbone_args": {"width": [4]}}, "prm.backbone_args.*width"),
        ({"smooth": 2}, "prm.smooth must be odd, got 2"),
        ({"backbone": "resnet18", "backbone_args": SMALL, "weights": "imagenet"}, "prm.weights"),
    ],
)
def test_faults_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        build_prm(PRMConfig(**{"weights": "random", **options}), 3)


def test_missing_weights_have_a_remedy(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no\.pth.*prm\.weights"):
        build_prm(PRMConfig(weights=str(tmp_path / "no.pth")), 3)

    def unreachable(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(type(ResNet50_Weights.IMAGENET1K_V1), "get_state_dict", unreachable)
    with pytest.raises(FileNotFoundError, match=r"no route.*resnet50-.*\.pth.*prm\.weights"):
        build_prm(PRMConfig(), 3)


def test_imagenet_weights_reach_the_trunk(tmp_path):
    reference = resnet50(weights=None)
    torch.save(reference.state_dict(), tmp_path / "resnet50.pth")
    net = build_prm(PRMConfig(weights=str(tmp_path / "resnet50.pth")), 3)
    state = net.state_dict()
    assert torch.equal(state["0.features.0.weight"], reference.conv1.weight)
    assert torch.equal(state["0.features.7.2.conv3.weight"], reference.layer4[2].conv3.weight)


def test_build_prm_takes_everything_from_the_configuration():
    args = "{widths: [4, 6], depths: [1, 1], strides: [1, 2]}"
    overrides = ["model.backbone_args", args, "prm.backbone_args", "${model.backbone_args}"]
    overrides += ["prm.backbone", "resnet18", "prm.weights", "random"]
    config = load_config(None, [*overrides, "prm.smooth", "3", "prm.upsample", "2"])
    net = build_prm(config.prm, num_classes=7)
    assert (net.num_classes, net.settings, net.backbone.out_channels) == (7, config.prm, 6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_checkpoints_load(tmp_path, wrapped):
    net, other = small_net(), small_net()
    randomise(net)
    state = net.state_dict()
    torch.save({"model": state} if wrapped else state, tmp_path / "prm.pth")
    load_prm(other, tmp_path / "prm.pth")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "prm.pth"
    with pytest.raises(FileNotFoundError, match=r"prm\.pth.*tools/prm\.py train"):
        load_prm(small_net(), path)
    torch.save(small_net(num_classes=5).state_dict(), path)
    with pytest.raises(ValueError, match=r"prm\.pth: the PRM knows 5 classes, the data set has 3"):
        load_prm(small_net(), path)
    for change in ("missing", "shape", "unknown"):
        state = small_net().state_dict()
        name = "0.features.res1.0.weight"
        if change == "missing":
            del state[name]
        elif change == "shape":
            state[name] = state[name][:1]
        else:
            name = "0.features.res9.0.weight"
            state[name] = torch.zeros(1)
        torch.save(state, path)
        with pytest.raises(ValueError, match=rf"1 of its tensors .*{name}.*prm\.backbone"):
            load_prm(small_net(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"prm\.pth"):
        load_prm(small_net(), path)


def test_small_trunk_goes_to_cim_whole(tmp_path):
    net = small_net(upsample=1).eval()
    randomise(net)
    torch.save({"model": net.state_dict()}, tmp_path / "prm.pth")
    trunk = build_backbone("resnet18", SMALL)
    trunk.load_weights(prm_backbone(tmp_path / "prm.pth"))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(trunk.eval()(images), net.backbone(images))


def test_resnet50_trunk_goes_to_cim_without_its_last_stage(tmp_path):
    net = PeakResponseNet(3, PRMConfig()).eval()
    randomise(net)
    torch.save(net.state_dict(), tmp_path / "prm.pth")
    trunk = build_backbone("resnet50")
    trunk.load_weights(prm_backbone(tmp_path / "prm.pth"))
    given = net.state_dict()
    assert torch.equal(trunk.res1[0].weight, given["0.features.0.weight"])
    assert torch.equal(trunk.res4[5].conv3.weight, given["0.features.6.5.conv3.weight"])
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(trunk.eval()(images), net.backbone.feature_maps(images)[2])


def test_what_is_no_prm_has_no_trunk_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tools/prm\.py train"):
        prm_backbone(tmp_path / "prm.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "prm.pth")
    with pytest.raises(ValueError, match="not a PRM checkpoint"):
        prm_backbone(tmp_path / "prm.pth")
