"""Scoring the proposals of an image over scales and mirrorings, as configured and plainly."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.drawn import Product, draw_sample
from benchmarks.network import fastest_precision, two_networks
from benchmarks.report import Conditions, Row
from benchmarks.timing import time_together
from lib.config import RuntimeConfig
from lib.data.transforms import mirror_boxes, mirror_roi_masks
from lib.engine.build import prepare_for_inference
from lib.modeling.model_builder import CIMNet
from lib.modeling.scoring import proposal_scores, score_passes
from lib.structures import Sample

SCALES = (480, 576, 688, 864, 1200)
"""Long sides, each with its mirror image: the ten published passes."""
NUM_PROPOSALS = 100
GOALS = {"bfloat16": 3.0, "float32": 2.0}
"""On a CPU, by the fastest precision that it has products for."""


def run(conditions: Conditions) -> Iterator[Row]:
    """Times the default configuration, and bfloat16 where it pays, beside the plain path."""
    scales, num = ((64, 96), 10) if conditions.quick else (SCALES, NUM_PROPOSALS)
    passes = [view for scale in scales for view in _both_ways(draw_sample(scale, num))]
    plain, exact = two_networks(conditions)
    plain.eval()
    precision = fastest_precision(conditions)
    models = {"float32": exact}
    if precision == "bfloat16":
        models["bfloat16"] = copy.deepcopy(exact)
    products = {name: Product(getattr(torch, name), conditions) for name in models}
    calls = {"plain": lambda: score_plainly(plain, passes, conditions.device)}
    for name, model in models.items():
        fast = prepare_for_inference(model, RuntimeConfig(precision=name))
        calls[name] = lambda fast=fast: score_passes(fast, passes, conditions.device)
    scores, flops = {}, {}
    for name, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            scores[name] = call()
        flops[name] = counter.get_total_flops()
    timed = {**calls, **{f"{name} product": product for name, product in products.items()}}
    times = time_together(timed, seconds=0)

    case = f"P={num}, {len(passes)} passes, long sides {', '.join(map(str, scales))}"
    of_product = {n: product.tflops(times[f"{n} product"]) for n, product in products.items()}
    of_product["plain"] = of_product["float32"]
    for name in calls:
        rate = flops[name] / times[name].best / 1e12
        yield Row(f"{case}: {name}", times[name].best, "s")
        yield Row(f"  operations, {name}", flops[name] / 1e12, "TFLOP")
        yield Row(f"  rate, {name}", rate, "TFLOP/s")
        yield Row(f"  of a matrix product of its type, {name}", rate / of_product[name], "")
    for name in models:
        yield Row(
            f"{name}, times as fast as plain",
            times["plain"].times(times[name]),
            "x",
            at_least=GOALS[name] if conditions.device.type == "cpu" and name == precision else None,
        )
    for name in models:
        error = (scores[name] - scores["plain"]).abs().max() / scores["plain"].abs().max()
        yield Row(f"largest difference of a score to plain, {name}", float(error), "of the largest")


@torch.inference_mode()
def score_plainly(model: CIMNet, passes: Sequence[Sample], device: torch.device | str) -> Tensor:
    """Computes `score_passes` pass by pass."""
    total = 0
    for view in passes:
        view = view.to(device)
        total = total + proposal_scores(model(view.image[None], view.boxes, view.roi_masks))
    return (total / len(passes)).cpu()


def _both_ways(sample: Sample) -> list[Sample]:
    """A view and its mirror image."""
    flip, size = "horizontal", tuple(sample.image.shape[1:])
    masks = torch.from_numpy(mirror_roi_masks(sample.roi_masks.numpy(), flip))
    mirrored = replace(
        sample,
        image=sample.image.flip(2),
        boxes=mirror_boxes(sample.boxes, size, flip),
        roi_masks=masks,
    )
    return [sample, mirrored]
