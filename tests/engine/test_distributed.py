"""The model as several processes share it, in a group of one; tests/tools has groups of two."""

import pytest
import torch
import torch.distributed as dist

from lib.engine.distributed import ALONE, summing_model
from lib.modeling.backbones.hrnet import HRNet


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_parameters_that_never_get_a_gradient_are_not_waited_for(group):
    torch.manual_seed(0)
    trunk = HRNet(width=4, depths=(1, 1, 1), blocks=1)
    shared = summing_model(trunk, ALONE)
    image = torch.rand(1, 3, 32, 32)
    with shared.no_sync():
        shared(image).sum().backward()
    for _ in range(2):  # DistributedDataParallel notices at the next forward pass
        shared(image).sum().backward()
    sums = {name: p.grad for name, p in trunk.named_parameters() if p.grad is not None}

    trunk.zero_grad(set_to_none=True)
    trunk(image).sum().backward()
    alone = {name: p.grad for name, p in trunk.named_parameters() if p.grad is not None}
    idle = {n for n, p in trunk.named_parameters() if p.requires_grad} - alone.keys()
    assert {"bn1.weight", "classifier.weight"} <= idle
    # Not even a zero: the optimiser would let them decay.
    assert sums.keys() == alone.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(sums[name], 3 * gradient, rtol=1e-3, atol=1e-4)
