import pytest
import torch
import torchvision

from lib.modeling.backbones import build_backbone, read_state_dict


def whole_resnet(model, image, last):
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    for number in range(1, last + 1):
        x = model.get_submodule(f"layer{number}")(x)
    return x


@pytest.mark.parametrize(("name", "last"), [("resnet18", 4), ("resnet50", 3)])
def test_features_are_torchvisions_from_its_weights(name, last, tmp_path):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None)
    theirs(torch.randn(2, 3, 64, 64))  # moves the running statistics
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    trunk = build_backbone(name)
    trunk.load_weights(read_state_dict(tmp_path / "weights.pth"))
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        features = trunk.train()(image)
        assert torch.equal(features, whole_resnet(theirs, image, last))
    assert features.shape == (1, trunk.out_channels, -(-65 // trunk.stride), -(-97 // trunk.stride))


def test_what_trains():
    trunk = build_backbone("resnet50")
    frozen = {name.split(".")[0] for name, p in trunk.named_parameters() if not p.requires_grad}
    trains = {name.split(".")[0] for name, p in trunk.named_parameters() if p.requires_grad}
    assert (frozen, trains) == ({"res1", "res2"}, {"res3", "res4"})
    assert all(p.requires_grad for p in build_backbone("resnet18").parameters())


@pytest.mark.parametrize("frozen_bn", [True, False])
def test_running_statistics(frozen_bn):
    trunk = build_backbone("resnet18", {"widths": (4, 4, 4, 4)})
    if not frozen_bn:
        trunk.use_batch_statistics()
    trunk.train()
    before = trunk.res1[1].running_mean.clone()
    trunk(torch.randn(2, 3, 32, 32))
    assert torch.equal(trunk.res1[1].running_mean, before) == frozen_bn
    assert not any(m.training for m in trunk.eval().modules())


def test_small_trunks():
    trunk = build_backbone(
        "resnet18",
        {"widths": (4, 6, 8), "depths": (1, 1, 2), "strides": (1, 2, 1), "stem_pool": False},
    )
    assert (trunk.out_channels, trunk.stride) == (8, 4)
    assert trunk(torch.randn(1, 3, 40, 24)).shape == (1, 8, 10, 6)
    with pytest.raises(ValueError, match="random"):
        trunk.imagenet_weights()
    with pytest.raises(ValueError, match="as many depths as widths"):
        build_backbone("resnet18", {"widths": (4, 6)})


def test_weights_of_a_cim_checkpoint_and_of_data_parallel(tmp_path):
    source = build_backbone("resnet18", {"widths": (4, 4, 4, 4)})
    weights = {f"module.Conv_Body.{name}": t for name, t in source.state_dict().items()}
    weights["module.Box_Head.seg_fc.0.weight"] = torch.zeros(3)
    torch.save({"model": weights, "step": 3}, tmp_path / "model.pth")
    trunk = build_backbone("resnet18", {"widths": (4, 4, 4, 4)})
    trunk.load_weights(read_state_dict(tmp_path / "model.pth"))
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_weights_that_do_not_fit_say_what():
    source = build_backbone("resnet18", {"widths": (4, 4, 4, 4)})
    weights = dict(source.state_dict())
    del weights["res1.0.weight"]
    with pytest.raises(ValueError, match=r"my\.pth.*1 missing \(res1\.0\.weight\)"):
        source.load_weights(weights, "my.pth")
    with pytest.raises(ValueError, match="of another shape.*instead of"):
        build_backbone("resnet18", {"widths": (4, 4, 4, 6)}).load_weights(source.state_dict())


def test_weights_of_a_deeper_network_are_refused(tmp_path):
    """ResNet-34 has all tensors of ResNet-18, and more in the same layers."""
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "deeper.pth")
    told = r"deeper\.pth.*prm\.weights to `random`"
    with pytest.raises(ValueError, match=told) as raised:
        build_backbone("resnet18", section="prm").start_from(str(tmp_path / "deeper.pth"))
    assert "80 more than it has (layer1.2.conv1.weight" in str(raised.value)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint; docs/INSTALL\.md says"):
        read_state_dict(tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="broken.pth: not a readable checkpoint"):
        read_state_dict(tmp_path / "broken.pth")
    torch.save({"step": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        read_state_dict(tmp_path / "empty.pth")


def test_unknown_backbones_and_options():
    with pytest.raises(ValueError, match="resnet51.*resnet18, resnet50"):
        build_backbone("resnet51")
    with pytest.raises(ValueError, match="backbone_args do not fit resnet50.*wide"):
        build_backbone("resnet50", {"wide": 2})
