"""Gain of a cache of frozen features: updates of CIM and of the PRM with it and without."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional

from benchmarks.drawn import NUM_CLASSES, draw_sample
from benchmarks.report import Conditions, Row
from benchmarks.timing import time_together
from lib.config import Config, ModelConfig, PRMConfig, SolverConfig
from lib.engine.build import build_trainer
from lib.engine.trainer import Trainer
from lib.fast.feature_cache import FeatureCache
from lib.modeling.model_builder import build_model
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import class_scores

FROZEN = {"all frozen": 5, "three of five levels frozen": 3}
IMAGES = 4
"""Of an update, and of the whole training: all is kept after the first update."""
GOAL = 1.2
"""Of updates with all levels frozen, on a CPU."""


def run(conditions: Conditions) -> Iterator[Row]:
    """Times updates of an EfficientNet-Lite0 (stride 16) under the narrow heads of
    configs/photos.yaml, once all features are kept, beside the same updates without a cache."""
    long_side, num = (64, 10) if conditions.quick else (448, 300)
    samples = [draw_sample(long_side, num, NUM_CLASSES, seed) for seed in range(IMAGES)]
    images = torch.randn(IMAGES, 3, long_side, long_side)
    for name, frozen in FROZEN.items():
        arguments = {"name": "tf_efficientnet_lite0", "output_stride": 16, "frozen": frozen}
        plain, kept = _trainers(arguments, conditions)
        prm = PeakResponseNet(NUM_CLASSES, PRMConfig(backbone="timm", backbone_args=arguments))
        prm.to(conditions.device).train()
        of_prm = FeatureCache(prm.backbone, 1e9)
        losses = [next(_losses(trainer, samples)) for trainer in (plain, kept)]
        on_device = images.to(conditions.device)
        times = time_together(
            {
                "plain": partial(next, _losses(plain, samples)),
                "kept": partial(next, _losses(kept, samples)),
                "PRM plain": lambda n=prm, x=on_device: _update_prm(n, n.backbone(x)),
                "PRM kept": lambda n=prm, c=of_prm, x=on_device: _update_prm(n, c(n.backbone, x)),
            },
            seconds=0 if conditions.quick else 6,
            min_rounds=2,
        )
        case = f"{name}, long side {long_side}"
        yield Row(f"{case}: kept of an image", kept.model.kept.bytes / IMAGES / 1e6, "MB")
        for what, first in ((f"CIM, P={num}", ""), ("PRM", "PRM ")):
            slow, fast = times[f"{first}plain"], times[f"{first}kept"]
            text = f"{case}: {what}, update of {IMAGES} images"
            yield Row(f"{text}, computed", slow.best, "s")
            yield Row(f"{text}, kept", fast.best, "s")
            on_cpu = conditions.device.type == "cpu"
            goal = GOAL if frozen == 5 and on_cpu and not conditions.quick else None
            yield Row(f"{text}, times as fast", slow.times(fast), "x", at_least=goal)
        error = abs(losses[1] - losses[0]) / losses[0]
        yield Row(f"{case}: difference of the losses", error, "relative")


def _trainers(arguments: dict[str, object], conditions: Conditions) -> tuple[Trainer, Trainer]:
    """Of two equal networks, the second one's features are kept."""
    torch.manual_seed(conditions.seed)
    model = ModelConfig(
        backbone="timm",
        backbone_args=arguments,
        weights="random",
        fuse_channels=32,
        hidden_dim=256,
    )
    # The rate is next to 0, so that all updates are of the same weights.
    config = Config(model=model, solver=SolverConfig(base_lr=1e-12, images_per_update=IMAGES))
    plain = build_model(config.model, NUM_CLASSES)
    net = copy.deepcopy(plain)
    device = str(conditions.device)
    kept = FeatureCache(net.Conv_Body, 1e9)
    return build_trainer(config, plain, device), build_trainer(config, net, device, kept=kept)


def _losses(trainer: Trainer, samples: list) -> Iterator[float]:
    endless = itertools.cycle(samples)
    while True:
        yield trainer.update(endless)["total"]


def _update_prm(net: PeakResponseNet, features: torch.Tensor) -> None:
    """Computes an update without its step."""
    scores = class_scores(net.smoothed(net.classifier(features)))
    net.zero_grad()
    functional.multilabel_soft_margin_loss(scores, torch.ones_like(scores)).backward()
