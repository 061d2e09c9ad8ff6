"""Updates of the weights, as configured and plainly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.drawn import NUM_CLASSES, Product, draw_sample
from benchmarks.network import fastest_precision, two_networks
from benchmarks.report import Conditions, Row
from benchmarks.timing import time_together
from lib.config import Config, RuntimeConfig, SolverConfig
from lib.engine.build import build_trainer
from lib.engine.trainer import OneByOne, Trainer
from lib.fast.mining import fast_miner
from lib.modeling.criterion import CIMCriterion, score_image
from lib.modeling.heads import CIMMiner

GOALS = {("cpu", "bfloat16"): 2.5, ("cpu", "float32"): 2.0, ("cuda", "bfloat16"): 4.0}
"""By device and the fastest precision that it has products for."""
ALIKE = "plain, mined alike"


def run(conditions: Conditions) -> Iterator[Row]:
    """Times an update of four images on the fast path beside the plain one.

    On a GPU also beside the plain one with the miner of the fast one, for which the GPU need not
    wait.
    """
    gpu = conditions.device.type == "cuda"
    long_side, num = (688, 500) if gpu else (480, 100)
    if conditions.quick:
        long_side, num = 64, 10
    # The rate is next to 0, so that all updates are of the same weights.
    solver = SolverConfig(base_lr=1e-12)
    precision = fastest_precision(conditions)
    runtime = RuntimeConfig(precision=precision, images_together=True)
    config = Config(solver=solver, runtime=runtime)
    plain_net, net = two_networks(conditions)
    plain = plain_trainer(plain_net, config, conditions.device)
    fast = build_trainer(config, net, str(conditions.device))
    samples = itertools.cycle(
        draw_sample(long_side, num, NUM_CLASSES, seed)
        for seed in range(config.solver.images_per_update)
    )
    products = {n: Product(getattr(torch, n), conditions) for n in {"float32", precision}}
    trainers = {"plain": plain, precision: fast}
    if gpu:
        miner = fast_miner(config.mining, conditions.device)
        trainers[ALIKE] = plain_trainer(plain_net, config, conditions.device, miner)
    losses, flops = {}, {}
    for name, trainer in trainers.items():
        with FlopCounterMode(display=False) as counter:
            losses[name] = trainer.update(samples)["total"]
        flops[name] = counter.get_total_flops()
    times = time_together(
        {
            **{name: lambda t=trainer: t.update(samples) for name, trainer in trainers.items()},
            **{f"{name} product": product for name, product in products.items()},
        },
        seconds=0,
        min_rounds=2,
    )
    of_product = {n: product.tflops(times[f"{n} product"]) for n, product in products.items()}
    of_product["plain"] = of_product[ALIKE] = of_product["float32"]
    case = f"P={num}, long side {long_side}, {config.solver.images_per_update} images"
    for name in trainers:
        rate = flops[name] / times[name].best / 1e12
        yield Row(f"{case}: {name}", times[name].best, "s")
        yield Row(f"  operations, {name}", flops[name] / 1e12, "TFLOP")
        yield Row(f"  rate, {name}", rate, "TFLOP/s")
        yield Row(f"  of a matrix product of its type, {name}", rate / of_product[name], "")
    ratio = times["plain"].times(times[precision])
    goal = GOALS[conditions.device.type, precision]
    yield Row(f"{precision}, times as fast as plain", ratio, "x", at_least=goal)
    if gpu:
        alike = times[ALIKE].times(times[precision])
        yield Row(f"{precision}, times as fast as {ALIKE}", alike, "x")
    error = abs(losses[precision] - losses["plain"]) / losses["plain"]
    yield Row("difference of the losses of the first update", error, "relative")


def plain_trainer(
    model: nn.Module, config: Config, device: torch.device, miner: CIMMiner | None = None
) -> Trainer:
    """As written down: float32, contiguous, the plain miner, SGD tensor by tensor.

    Args:
        miner: in place of the plain one.
    """
    miner = config.mining if miner is None else miner
    parameters = [p for p in model.parameters() if p.requires_grad]
    return Trainer(
        model=model.train(),
        backward=OneByOne(model, score_image, CIMCriterion(miner)),
        optimizer=torch.optim.SGD(
            [{"params": parameters, "lr_factor": 1.0}], lr=0.0, momentum=0.9, foreach=False
        ),
        solver=config.solver,
        loss_weights=config.loss.model_dump(),
        device=device,
    )
