"""The section `runtime` in use: other ways to compute the same training and the same scores."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from benchmarks.drawn import draw_sample
from benchmarks.network import SMALL
from torch import nn

from lib.config import Config, RuntimeConfig, SolverConfig
from lib.engine import build
from lib.engine.build import build_trainer, chosen_precision, prepare_for_inference
from lib.engine.trainer import NonFiniteLossError
from lib.modeling.model_builder import build_model
from lib.modeling.scoring import proposal_scores, score_passes

NUM_CLASSES = 5


def samples(count=4):
    return [draw_sample(48 + 16 * (n // 2), 12 + n, NUM_CLASSES, seed=n) for n in range(count)]


def trained(updates=2, **runtime):
    """A trainer after a few updates of four images, of two sizes."""
    torch.manual_seed(0)
    model = build_model(SMALL, NUM_CLASSES)
    config = Config(
        solver=SolverConfig(base_lr=1e-3, warmup_iters=0), runtime=RuntimeConfig(**runtime)
    )
    trainer = build_trainer(config, model, "cpu")
    told = [trainer.update(iter(samples())) for _ in range(updates)]
    return trainer, told


def test_images_together_are_the_sum_of_images_one_by_one():
    alone, told_alone = trained()
    together, told_together = trained(images_together=True)
    for one, other in zip(told_alone, told_together, strict=True):
        for name in ("bag", "pcl", "refine_cls", "refine_integrity", "total", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
    weights = dict(alone.model.named_parameters())
    for name, weight in together.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-6)


def test_a_training_goes_on_in_another_memory_layout():
    """The momentum of a checkpoint comes in the layout of the training that wrote it."""
    before, _ = trained(channels_last=False)
    state = copy.deepcopy(before.state_dict())
    after, _ = trained(updates=0, channels_last=True)
    after.load_state_dict(state)
    for trainer in (before, after):
        trainer.update(iter(samples()))
    weights = dict(before.model.named_parameters())
    assert any(p.stride() != weights[n].stride() for n, p in after.model.named_parameters())
    for name, weight in after.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-6)
        if weight.requires_grad:
            momentum = after.optimizer.state[weight]["momentum_buffer"]
            assert momentum.stride() == weight.stride(), name


def test_a_gpu_without_bfloat16_is_told_at_the_start(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(ValueError, match="bfloat16, which Old GPU does not compute; set it to"):
        chosen_precision(RuntimeConfig(precision="bfloat16"), "cuda")
    chosen_precision(RuntimeConfig(precision="float32"), "cuda")


@pytest.mark.parametrize(("speedup", "warned"), [(1 / 45, True), (2.2, False)])
def test_a_cpu_without_bfloat16_products_is_warned_of(speedup, warned, monkeypatch, caplog):
    monkeypatch.setattr(build, "bfloat16_speedup", lambda: speedup)
    chosen_precision(RuntimeConfig(precision="bfloat16"), "cpu")
    assert ("45 times as long" in caplog.text) == warned
    caplog.clear()
    chosen_precision(RuntimeConfig(precision="float32"), "cpu")
    assert not caplog.text
    fastest = chosen_precision(RuntimeConfig(precision="fastest"), "cpu")
    assert fastest == (torch.float32 if warned else torch.bfloat16)
    assert not caplog.text


@pytest.mark.parametrize(
    "runtime", [{}, {"images_together": True}, {"proposals_chunk": 5}], ids=str
)
def test_an_image_without_proposals_is_trained_past(runtime):
    """Imported proposals can be none: such an image has constant losses, and moves no weight."""
    trainer, _ = trained(updates=0, **runtime)
    *others, last = samples()
    per_proposal = ("boxes", "roi_masks", "membership", "cluster_id", "cluster_column")
    none = replace(last, **{name: getattr(last, name)[:0] for name in per_proposal})
    values = trainer.update(iter([*others, none]))
    assert all(map(math.isfinite, values.values())) and values["grad_norm"] > 0

    before = copy.deepcopy(trainer.model.state_dict())
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = group["momentum"] = 0.0
    assert trainer.update(iter([none] * 4))["grad_norm"] == 0
    assert all(torch.equal(before[n], t) for n, t in trainer.model.state_dict().items())


def test_images_together_give_the_same_bits_again():
    first, second = (trained(images_together=True)[0].model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_image_that_fails_together_with_others_is_named(monkeypatch):
    trainer, _ = trained(images_together=True)
    bad = samples()
    bad[2].image.fill_(float("nan"))
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(NonFiniteLossError, match=bad[2].file_name):
        trainer.update(iter(bad))
    assert all(torch.equal(before[n], t) for n, t in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("runtime", "tolerance"),
    [
        ({"precision": "bfloat16"}, 2e-2),
        ({"channels_last": False}, 1e-4),
        ({"proposals_chunk": 5}, 1e-4),
    ],
)
def test_losses_hardly_depend_on_how_they_are_computed(runtime, tolerance):
    """bfloat16 keeps 8 bits: a loss moves by 2% at most. Mining may decide otherwise in between, so
    that only the first update is compared."""
    _, (plain,) = trained(updates=1)
    _, (other,) = trained(updates=1, **runtime)
    for name in ("bag", "pcl", "total"):
        assert other[name] == pytest.approx(plain[name], rel=tolerance), name


@pytest.mark.parametrize(
    ("runtime", "tolerance"),
    [({}, 1e-6), ({"precision": "bfloat16"}, 1e-2), ({"proposals_chunk": 7}, 1e-6)],
)
def test_inference_scores_as_the_network_in_training(runtime, tolerance):
    model = trained()[0].model.eval()
    passes = [draw_sample(size, 9, NUM_CLASSES) for size in (48, 48, 64)]
    with torch.no_grad():
        plain = [model(view.image[None], view.boxes, view.roi_masks) for view in passes]
    expected = torch.stack([proposal_scores(scores) for scores in plain]).mean(dim=0)
    model = prepare_for_inference(model, RuntimeConfig(**runtime))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    error = (score_passes(model, passes, "cpu") - expected).abs().max() / expected.abs().max()
    assert error <= tolerance
    half = runtime.get("precision") == "bfloat16"
    stored = {p.dtype for p in model.Box_Head.parameters()}
    assert stored == {torch.bfloat16 if half else torch.float32}
