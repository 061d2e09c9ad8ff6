"""The fast network against the plain one: the same weights, scores and gradients."""

import copy
from dataclasses import replace

import pytest
import torch

from lib.fast import network
from lib.fast.network import FastCIMNet, score_images
from lib.modeling.criterion import CIMCriterion, score_image
from lib.modeling.heads import CIMMiner
from tests.modeling.test_model import draw_image, losses_of, small_model

SCORES = ("cls_prob", "det_prob", "refine_cls_prob", "refine_integrity_prob")


def gradients_of(model, sample):
    model.zero_grad()
    sum(losses_of(model, sample).values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def double(sample):
    return replace(sample, image=sample.image.double(), boxes=sample.boxes.double())


@pytest.mark.parametrize("chunk", [None, 1, 3, 8])
def test_gradients_are_those_of_the_plain_network(chunk, monkeypatch):
    plain = small_model().double().train()
    sample = double(draw_image([(0, 4, 4), (1, 24, 40)]))
    expected = gradients_of(plain, sample)
    seen, conv = [], network.masked_conv

    def counted(features, *others):
        seen.append(len(features))
        return conv(features, *others)

    monkeypatch.setattr(network, "masked_conv", counted)
    found = gradients_of(FastCIMNet(plain, proposals_chunk=chunk), sample)
    assert max(seen) == (chunk or 8)
    # In chunks also once more backwards.
    assert sum(seen) == len(sample.boxes) * (2 if chunk in (1, 3) else 1)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


def test_weights_are_those_of_the_plain_network():
    plain = small_model().eval()
    fast = FastCIMNet(plain)
    assert not fast.training
    ours, theirs = fast.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in theirs)


def views_of_several_images():
    samples = [
        draw_image([(0, 4, 4), (1, 24, 40)], noise=1),
        draw_image([(1, 20, 30)], noise=2),  # of the same size
        draw_image([(0, 4, 4)], height=40, noise=3),
    ]
    none = replace(samples[0], boxes=torch.zeros(0, 4), roi_masks=torch.zeros(0, 7, 7))
    return [*samples, none]


@pytest.mark.parametrize("chunk", [None, 5, 100])
def test_views_together_score_as_each_alone(chunk):
    model, views = small_model().eval(), views_of_several_images()
    fast = FastCIMNet(model, proposals_chunk=chunk)
    with torch.no_grad():
        plain = [model(v.image[None], v.boxes, v.roi_masks) for v in views]
        alone = [fast(v.image[None], v.boxes, v.roi_masks) for v in views]
        for found in (alone, fast.score_views(views)):
            for one, expected in zip(found, plain, strict=True):
                for name in SCORES:
                    torch.testing.assert_close(getattr(one, name), getattr(expected, name))


def test_losses_together_are_those_of_each_image():
    model = small_model().train()
    samples = [draw_image([(0, 4, 4), (1, 24, 40)]), draw_image([(1, 20, 30)], height=40)]
    criterion = CIMCriterion(CIMMiner(seed_fraction=0.3))

    def generators():
        return [torch.Generator().manual_seed(n) for n in range(2)]

    alone = [score_image(model, *each) for each in zip(samples, generators(), strict=True)]
    together = score_images(FastCIMNet(model), samples, generators())
    for one, other in zip(together, alone, strict=True):
        one, other = criterion(*one), criterion(*other)
        assert one.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-6)


def test_bfloat16_changes_losses_by_little():
    """Products are rounded to 8 bits; scores, losses and all gradients of weights are float32."""
    sample = draw_image([(0, 4, 4), (1, 24, 40)])
    miner = CIMMiner(seed_fraction=0.3, anti_noise=False)
    model = small_model().train()
    exact = losses_of(model, sample, miner)
    rounded = losses_of(FastCIMNet(model, torch.bfloat16), sample, miner)
    for name, loss in exact.items():
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(loss.item(), rel=2e-2), name
    assert any(rounded[name].item() != exact[name].item() for name in exact)
    sum(rounded.values()).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_replicas_keep_the_settings():
    fast = copy.deepcopy(FastCIMNet(small_model(), torch.bfloat16, 7))
    assert (fast.precision, fast.proposals_chunk) == (torch.bfloat16, 7)
