"""RoIAlign as matrix products, against torchvision's kernel."""

import pytest
import torch
from torchvision import ops

from lib.fast.roi_align import roi_align


def boxes_of_all_kinds(count, height, width, generator):
    size = torch.tensor([width, height, width, height])
    boxes = torch.rand(count, 4, generator=generator) * size * 0.6
    boxes[:, 2:] += boxes[:, :2]
    special = torch.tensor(
        [
            [5.0, 5.0, 5.0, 9.0],  # no width
            [0.0, 0.0, width, height],  # the whole image
            [-30.0, -40.0, width + 60.0, height + 50.0],  # beyond it on all sides
            [-90.0, 3.0, -60.0, 20.0],  # outside
        ]
    )
    return torch.cat([special, boxes])


@pytest.mark.parametrize(("height", "width", "stride"), [(9, 14, 8), (30, 21, 16), (1, 5, 32)])
def test_values_and_gradients_are_torchvisions(height, width, stride):
    generator = torch.Generator().manual_seed(height)
    features = torch.randn(1, 6, height, width, generator=generator, dtype=torch.float64)
    boxes = boxes_of_all_kinds(20, height * stride, width * stride, generator).double()
    upstream = torch.randn(len(boxes), 6, 7, 7, generator=generator, dtype=torch.float64)
    results = []
    for function in (
        lambda f: roi_align(f, boxes, 7, 1 / stride),
        lambda f: ops.roi_align(f, [boxes], 7, 1 / stride, sampling_ratio=0, aligned=True),
    ):
        leaf = features.clone().requires_grad_()
        pooled = function(leaf)
        pooled.backward(upstream)
        results.append((pooled.detach(), leaf.grad))
    (pooled, grad), (expected, expected_grad) = results
    torch.testing.assert_close(pooled, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)


def test_a_constant_map_stays_constant_and_no_boxes_give_nothing():
    features = torch.full((1, 2, 6, 8), 3.0)
    inside = torch.tensor([[8.0, 8.0, 40.0, 30.0]])
    torch.testing.assert_close(roi_align(features, inside, 7, 1 / 8), torch.full((1, 2, 7, 7), 3.0))
    assert roi_align(features, torch.zeros(0, 4), 7, 1 / 8).shape == (0, 2, 7, 7)
