"""The convolution of MaskFuse by sorted cells, against PyTorch's convolution."""

import pytest
import torch
from torch.nn import functional

from lib.fast import mask_conv
from lib.fast.mask_conv import masked_conv


def case(num=5, size=7, depth=3, width=4, dtype=torch.float64):
    rng = torch.Generator().manual_seed(size)
    features = torch.randn(num, depth, size, size, generator=rng, dtype=dtype)
    masks = (torch.rand(num, size, size, generator=rng) < 0.5).to(dtype)
    weight = torch.randn(width, 2 * depth, 3, 3, generator=rng, dtype=dtype)
    bias = torch.randn(width, generator=rng, dtype=dtype)
    return features, masks, weight, bias


def plain(features, masks, weight, bias):
    both = torch.cat([features, features * masks[:, None]], dim=1)
    return functional.conv2d(both, weight, bias, padding=1)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("together", [2, 100])
def test_values_and_gradients_are_the_convolutions(size, together, monkeypatch):
    monkeypatch.setattr(mask_conv, "_PROPOSALS_AT_ONCE", together)
    features, masks, weight, bias = case(size=size)
    masks[0], masks[1] = 0, 1  # nothing under the mask, and all
    results = []
    for function in (masked_conv, plain):
        leaves = [t.clone().requires_grad_() for t in (features, weight, bias)]
        fused = function(leaves[0], masks, *leaves[1:])
        upstream = torch.randn(fused.shape, generator=torch.Generator().manual_seed(1)).double()
        results.append([fused, *torch.autograd.grad(fused, leaves, upstream)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_the_gradient_has_the_layout_of_the_weights():
    """Otherwise adding it up in `.grad` would copy it."""
    features, masks, weight, bias = case()
    weight = weight.to(memory_format=torch.channels_last).requires_grad_()
    masked_conv(features, masks, weight, bias).sum().backward()
    assert weight.grad.stride() == weight.stride()


def test_no_proposals():
    features, masks, weight, bias = case(num=0)
    assert masked_conv(features, masks, weight, bias).shape == (0, 4, 7, 7)


def test_autocast_is_the_convolution_of_rounded_numbers():
    features, masks, weight, bias = (t.float() for t in case(num=20, depth=16))
    with torch.autocast("cpu", torch.bfloat16):
        fused = masked_conv(features, masks, weight, bias)
    assert fused.dtype == torch.bfloat16
    rounded = (t.bfloat16().double() for t in (features, masks, weight, bias))
    expected = plain(*rounded)
    # Each of the sums is rounded to 8 bits, and so are the products of a tap.
    error = (fused.double() - expected).abs().max() / expected.abs().max()
    assert 0 < error < 2**-7
