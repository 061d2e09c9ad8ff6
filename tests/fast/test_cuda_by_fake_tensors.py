"""The whole training step and the whole inference on a pretended GPU (tests/fake_cuda.py)."""

from dataclasses import replace

import pytest
import torch
from benchmarks.drawn import draw_sample
from benchmarks.network import SMALL
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from lib.config import Config, ModelConfig, PRMConfig, RuntimeConfig, SolverConfig
from lib.engine.build import build_trainer, prepare_for_inference
from lib.engine.trainer import Trainer
from lib.modeling.criterion import CIMCriterion
from lib.modeling.heads import CIMMiner
from lib.modeling.model_builder import CIMNet, build_model
from lib.modeling.scoring import score_passes
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import class_scores
from tests.fake_cuda import Watch, pretended_gpu

NUM_CLASSES = 5
FAST = {"precision": "bfloat16", "images_together": True, "proposals_chunk": 20}
RUNTIMES = [{}, FAST, {"precision": "bfloat16"}, {"channels_last": False}, {"proposals_chunk": 7}]
BIG = ["resnet50", "vgg16", "hrnet48"]
DRAWS = "aten::rand.generator"
"""The anti-noise draws are made on the CPU, and sent without waiting."""


# Real ones, of two sizes.
FEW, MANY = (draw_sample(side, count, NUM_CLASSES) for side, count in ((64, 12), (96, 30)))


def update(monkeypatch, model_config, images, mining=None, **runtime):
    """One update of the weights, but for the losses that are told, which wait for the GPU.

    Returns:
        The trainer, and what a Watch has seen.
    """
    solver = SolverConfig(images_per_update=len(images), clip_grad_norm=1.0)
    config = Config(solver=solver, runtime=RuntimeConfig(**runtime), mining=mining or CIMMiner())
    monkeypatch.setattr(
        Trainer, "_finite", lambda _self, _, losses, norm: ([dict.fromkeys(losses[0], 0.0)], 0.0)
    )
    trainer = build_trainer(config, build_model(model_config, NUM_CLASSES), "cuda")
    with Watch(host={DRAWS}) as watch:
        trainer.update(iter(images))
    return trainer, watch


def assert_all_trains_on_the_gpu(trainer):
    idle = trainer.model.Conv_Body.has_idle_parameters
    for name, parameter in trainer.model.named_parameters():
        assert parameter.device.type == "cuda", name
        if parameter.requires_grad and not (idle and parameter.grad is None):
            assert parameter.grad.device.type == "cuda", name
            assert trainer.optimizer.state[parameter]["momentum_buffer"].device.type == "cuda", name


@pytest.mark.parametrize("runtime", RUNTIMES, ids=str)
def test_an_update_waits_for_nothing(monkeypatch, runtime):
    with pretended_gpu():
        trainer, watch = update(monkeypatch, SMALL, [FEW, MANY], **runtime)
        assert_all_trains_on_the_gpu(trainer)
    assert not watch.faults
    # It is CUDA's way that was taken, with all that an update is made of.
    assert {
        "torchvision::roi_align",
        "aten::scatter_add_",
        "aten::_fused_sgd_",
    } <= watch.operations


@pytest.mark.parametrize("backbone", BIG)
def test_an_update_of_the_published_networks(monkeypatch, backbone):
    with pretended_gpu():
        config = ModelConfig(backbone=backbone, weights="random")
        trainer, watch = update(monkeypatch, config, [FEW], **FAST)
        assert_all_trains_on_the_gpu(trainer)
    assert not watch.faults


@pytest.mark.parametrize(
    "changes",
    [{"labels": "mist"}, {"complete_by": "cls"}, {"oversized_background": True}],
    ids=str,
)
def test_the_variants_of_mining(monkeypatch, changes):
    with pretended_gpu():
        _, watch = update(monkeypatch, SMALL, [FEW], CIMMiner(**changes))
    assert not watch.faults


def test_areas_too_large_for_float32_are_multiplied_in_float64(monkeypatch):
    sample = replace(FEW, num_pixels=2**25)
    with pretended_gpu():
        _, watch = update(monkeypatch, SMALL, [sample])
    assert not watch.faults


@pytest.mark.parametrize(
    ("backbone", "precision"), [("small", "float32"), *((name, "bfloat16") for name in BIG)]
)
def test_inference_brings_one_tensor_back(monkeypatch, backbone, precision):
    """All scales and mirrorings together; the scores of the image are what comes back."""
    monkeypatch.setattr("lib.fast.folding._agree", lambda *_: True)  # pretended tensors are empty
    views = [draw_sample(side, 9, NUM_CLASSES) for side in (48, 48, 64)]
    with pretended_gpu():
        config = SMALL if backbone == "small" else ModelConfig(backbone=backbone, weights="random")
        model = build_model(config, NUM_CLASSES)
        runtime = RuntimeConfig(precision=precision, proposals_chunk=20)
        model = prepare_for_inference(model.to("cuda"), runtime)
        # Pretended tensors do not know the inference mode that score_passes puts itself in.
        with Watch() as watch, torch.no_grad():
            scores = score_passes.__wrapped__(model, views, "cuda")
    assert watch.sent == 3 * len(views)  # images, boxes and masks, nothing else
    assert scores.shape == (9, NUM_CLASSES) and scores.device.type == "cpu"
    assert watch.faults == [
        "aten::_to_copy makes a tensor on the CPU",
        "aten::_to_copy waits for a copy between CPU and GPU",
    ]


def test_an_update_of_the_prm():
    images, labels = torch.rand(2, 3, 64, 64), torch.ones(2, NUM_CLASSES)
    with pretended_gpu():
        net = PeakResponseNet(NUM_CLASSES, PRMConfig(smooth=3)).to("cuda").train()
        batch, labels = images.to("cuda"), labels.to("cuda")
        with Watch() as watch:
            scores = class_scores(net(batch))
            torch.nn.functional.multilabel_soft_margin_loss(scores, labels).backward()
        assert all(p.grad.device.type == "cuda" for p in net.parameters())
    assert not watch.faults


# What all this is for: mistakes that somebody will make.


def test_a_tensor_on_the_cpu_is_seen(monkeypatch):
    real = CIMCriterion.__call__

    def call(self, scores, *others):
        weight = torch.ones(scores.cls_prob.shape[1])
        return {**real(self, scores, *others), "bag": (scores.cls_prob * weight.to("cuda")).sum()}

    monkeypatch.setattr(CIMCriterion, "__call__", call)
    with pretended_gpu():
        _, watch = update(monkeypatch, SMALL, [FEW])
    assert watch.faults == [
        "aten::ones makes a tensor on the CPU",
        "aten::_to_copy waits for a copy between CPU and GPU",
    ]


def test_a_tensor_that_is_not_moved_is_seen(monkeypatch):
    real = CIMNet.__init__

    def init(self, *args, **options):
        real(self, *args, **options)
        self.mean = torch.zeros(3, 1, 1)  # neither parameter nor buffer: Module.to leaves it
        self.Conv_Body.register_forward_pre_hook(lambda _, args: (args[0] - self.mean,))

    monkeypatch.setattr(CIMNet, "__init__", init)
    with pretended_gpu(), pytest.raises(RuntimeError, match="device.*cuda:0.*cpu"):
        update(monkeypatch, SMALL, [FEW])


@pytest.mark.parametrize(
    "wait",
    [
        lambda loss: loss.item(),
        lambda loss: bool(loss > 0),
        lambda loss: loss.reshape(1).nonzero(),
        lambda loss: loss.reshape(1)[loss.reshape(1) > 0],
        lambda loss: torch.equal(loss, loss),
        lambda loss: loss.cpu(),
        lambda loss: loss.reshape(1).index_put_((loss.reshape(1) > 0,), loss),
        lambda loss: torch.tensor([1.0, 2.0], device="cuda"),
        lambda loss: torch.arange(3).repeat_interleave(torch.ones_like(loss.repeat(3)).long()),
    ],
)
def test_waiting_is_seen(wait):
    with pretended_gpu():
        loss = torch.ones((), device="cuda")
        watch = Watch()
        try:
            with watch:
                wait(loss)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return
    assert watch.faults
