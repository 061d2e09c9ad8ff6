import pytest
import torch
from torch import nn

from lib.config import ModelConfig, RuntimeConfig
from lib.engine.build import prepare_for_inference
from lib.fast.folding import fold_batch_norms
from lib.modeling.backbones import build_backbone
from lib.modeling.backbones.hrnet import HRNet
from lib.modeling.model_builder import build_model

SMALL = {"widths": [8, 16], "depths": [1, 2], "strides": [1, 2]}


def trunk_with_statistics(name):
    """A trunk whose batch norms do something."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    trunk = (
        HRNet(width=8, depths=(1, 1, 1), blocks=1)
        if name == "hrnet"
        else build_backbone("timm", {"name": name})
        if name in TIMM
        else build_backbone(name, SMALL if name == "resnet18" else {})
    )
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_var, 0.5), (module.weight.data, 0.5)):
                tensor.copy_(low + torch.rand(tensor.shape, generator=rng))
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=rng))
    return trunk.double().eval()


TIMM = ["tf_efficientnet_lite0", "test_convnext2", "test_nfnet", "test_byobnet"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "hrnet", *TIMM[:1]])
@torch.no_grad()
def test_all_batch_norms_are_folded_and_nothing_changes(name):
    trunk = trunk_with_statistics(name)
    image = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(2)).double()
    before = trunk(image)
    assert fold_batch_norms(trunk)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
    torch.testing.assert_close(trunk(image), before, rtol=1e-10, atol=1e-10)


def test_batch_norms_that_do_not_use_their_statistics_are_refused():
    trunk = build_backbone("resnet18", SMALL)
    trunk.use_batch_statistics()
    trunk.train()
    with pytest.raises(ValueError, match="eval"):
        fold_batch_norms(trunk)


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_networks_of_timm_score_as_before(name):
    """With activations inside their batch norms, weights made at every call, or no batch norms."""
    trunk = trunk_with_statistics(name)
    image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(2)).double()
    before = trunk(image)
    assert fold_batch_norms(trunk)
    torch.testing.assert_close(trunk(image), before, rtol=1e-10, atol=1e-10)


class WithoutBias(nn.Conv2d):
    def forward(self, images):
        return nn.functional.conv2d(images, self.weight, None, self.stride, self.padding)


class UsedTwice(nn.Module):
    """Its convolution's output also passes the batch norm by."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.conv(images)
        return features + self.norm(features)


@pytest.mark.parametrize("kind", ["without a bias", "used twice"])
@torch.no_grad()
def test_what_cannot_be_folded_stays_and_is_told(caplog, kind):
    torch.manual_seed(0)
    if kind == "used twice":
        trunk = UsedTwice().eval()
        trunk.norm.running_mean.fill_(3.0)
    else:
        trunk = trunk_with_statistics("resnet18")
        first = trunk.res2[0].conv1
        ignores = WithoutBias(8, 8, 3, padding=1, bias=False).double()
        ignores.weight.copy_(first.weight)
        trunk.res2[0].conv1 = ignores
    state = {name: value.clone() for name, value in trunk.state_dict().items()}
    image = torch.randn(1, 3, 32, 64).to(next(trunk.parameters()))
    before = trunk(image)
    with caplog.at_level("WARNING"):
        assert not fold_batch_norms(trunk)
    assert "features differ after folding its batch norms" in caplog.text
    assert torch.equal(trunk(image), before)
    after = trunk.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], value) for name, value in state.items())


def test_a_network_that_cannot_be_folded_scores_all_the_same(caplog):
    """Through the one place where a network is made ready for testing."""
    config = ModelConfig(
        backbone="resnet18", backbone_args=SMALL, weights="random", fuse_channels=4, hidden_dim=8
    )
    model = build_model(config, 2).eval()
    model.Conv_Body.res2[0].conv1.__class__ = WithoutBias
    model.Conv_Body.res2[0].bn1.bias.data.fill_(0.3)
    inputs = torch.randn(1, 3, 32, 64), torch.tensor([[0.0, 0, 20, 30]]), torch.ones(1, 7, 7)
    with torch.no_grad():
        before = model(*inputs).refine_cls_prob
        fast = prepare_for_inference(model, RuntimeConfig(channels_last=False))
        torch.testing.assert_close(fast(*inputs).refine_cls_prob, before)
    assert "used unfolded" in caplog.text


class Told(nn.Conv2d):
    """Remembers how exactly a GPU would compute it."""

    def forward(self, images):
        self.told = [*getattr(self, "told", []), torch.backends.cudnn.conv.fp32_precision]
        return super().forward(images)


@pytest.mark.parametrize("before", ["tf32", "ieee", "none"])
def test_features_are_compared_without_tf32_whose_rounding_is_larger_than_the_tolerance(before):
    convolutions = torch.backends.cudnn.conv
    found = convolutions.fp32_precision
    trunk = nn.Sequential(Told(3, 4, 3), nn.BatchNorm2d(4)).eval()
    try:
        convolutions.fp32_precision = before
        assert fold_batch_norms(trunk)
        assert trunk[0].told == ["ieee", "ieee"]
        assert convolutions.fp32_precision == before
    finally:
        convolutions.fp32_precision = found
