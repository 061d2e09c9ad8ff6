"""lib/fast/frozen.py: a frozen backbone computes an image once."""

import pytest
import torch

from lib.fast.frozen import is_frozen, remember_maps
from lib.modeling.backbones import build_backbone


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    net = build_backbone("resnet18", {"widths": [8, 16], "depths": [1, 1], "strides": [1, 2]})
    return net.requires_grad_(False).train()


class Counted:
    def __init__(self, forward):
        self.forward, self.images = forward, 0

    def __call__(self, images):
        self.images += len(images)
        return self.forward(images)


def test_computes_an_image_once_and_gives_its_map(backbone):
    counted = backbone.forward = Counted(backbone.forward)
    images = torch.randn(3, 3, 32, 48)
    expected = backbone(images)
    memory = remember_maps([backbone], limit=10**6)
    counted.images = 0
    for chosen in ([0], [1, 0], [2, 1, 0], [0, 1, 2]):
        given = backbone(images[chosen])
        assert torch.allclose(given, expected[chosen], rtol=1e-3, atol=1e-4)
        assert torch.equal(given, backbone(images[chosen]))  # to the bit, seen or not
    assert counted.images == 3
    assert memory.size == expected.numel() * 2
    backbone(images.flip(3))
    backbone(images[:, :, :16])
    assert counted.images == 9


def test_the_memory_is_bounded(backbone):
    counted = backbone.forward = Counted(backbone.forward)
    images = torch.randn(3, 3, 32, 48)
    one = backbone(images[:1]).numel() * 2
    counted.images = 0
    memory = remember_maps([backbone], limit=2 * one)
    backbone(images)
    assert memory.size == 2 * one
    backbone(images)
    assert counted.images == 4


def test_a_backbone_that_trains_is_left_alone(backbone):
    assert is_frozen(backbone)
    next(backbone.parameters()).requires_grad_(True)
    assert remember_maps([backbone], 10**6) is None
    backbone.requires_grad_(False).use_batch_statistics()
    assert not is_frozen(backbone.train())


def test_replicas_share_the_memory(backbone):
    torch.manual_seed(0)
    other = build_backbone("resnet18", {"widths": [8, 16], "depths": [1, 1], "strides": [1, 2]})
    other.load_state_dict(backbone.state_dict())
    counted = other.forward = Counted(other.forward)
    remember_maps([backbone, other.requires_grad_(False).train()], 10**6)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(backbone(image), other(image))
    assert counted.images == 0
