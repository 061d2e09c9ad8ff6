import pytest
import torch
from torch import nn

from lib.modeling.backbones import build_backbone
from lib.modeling.backbones.hrnet import HRNet
from lib.modeling.folding import fold_batch_norms

SMALL = {"widths": [8, 16], "depths": [1, 2], "strides": [1, 2]}


def trunk_with_statistics(name):
    """A trunk whose batch norms do something."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    trunk = (
        HRNet(width=8, depths=(1, 1, 1), blocks=1)
        if name == "hrnet"
        else build_backbone(name, SMALL if name == "resnet18" else {})
    )
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_var, 0.5), (module.weight.data, 0.5)):
                tensor.copy_(low + torch.rand(tensor.shape, generator=rng))
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=rng))
    return trunk.double().eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "hrnet"])
@torch.no_grad()
def test_all_batch_norms_are_folded_and_nothing_changes(name):
    trunk = trunk_with_statistics(name)
    image = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(2)).double()
    before = trunk(image)
    fold_batch_norms(trunk)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
    torch.testing.assert_close(trunk(image), before, rtol=1e-10, atol=1e-10)


def test_batch_norms_that_do_not_use_their_statistics_are_refused():
    trunk = build_backbone("resnet18", SMALL)
    trunk.use_batch_statistics()
    trunk.train()
    with pytest.raises(ValueError, match="eval"):
        fold_batch_norms(trunk)
