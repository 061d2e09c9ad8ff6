"""Gradient descent as the published numbers were made (paper, section 4.1), and AdamW."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import torch
from torch import nn

from lib.modeling.backbones import Backbone

if TYPE_CHECKING:
    from lib.config import SolverConfig


def learning_rate(solver: SolverConfig, iteration: int) -> float:
    """Rate of update `iteration` (from 0): linear warm-up, then constant with drops."""
    rate = solver.base_lr * solver.gamma ** bisect_right(solver.steps, iteration)
    if iteration < solver.warmup_iters:
        done = iteration / solver.warmup_iters
        rate *= solver.warmup_factor * (1 - done) + done
    return rate


def build_optimizer(model: nn.Module, solver: SolverConfig) -> torch.optim.SGD:
    """SGD over everything that trains, in two groups: weights and biases.

    A bias is a parameter whose name ends in `bias`: those of convolutions, linear layers and
    batch norms alike. Biases learn `solver.bias_lr_factor` times faster and do not decay. The
    scales of batch norms are weights. The rate is 0 until `set_learning_rate` sets it.

    Raises:
        ValueError: no parameter of `model` trains.
    """
    weights, biases = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (biases if name.endswith("bias") else weights).append(parameter)
    groups = [
        {"params": weights, "weight_decay": solver.weight_decay, "lr_factor": 1.0},
        {"params": biases, "weight_decay": 0.0, "lr_factor": solver.bias_lr_factor},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no parameter that trains")
    return torch.optim.SGD(groups, lr=0.0, momentum=solver.momentum, fused=True)


ADAMW_BACKBONE_FACTOR = 0.1
"""The backbone learns this many times as fast as the rest."""


def build_adamw(model: nn.Module, solver: SolverConfig) -> torch.optim.AdamW:
    """AdamW as Mask2Former (Cheng et al., CVPR 2022, section 4.1) and its code use it.

    A backbone learns ten times slower; vectors (biases, norms) and embeddings do not decay.
    """
    of_backbone, embeddings = set(), set()
    for module in model.modules():
        if isinstance(module, Backbone):
            of_backbone.update(module.parameters())
        elif isinstance(module, nn.Embedding):
            embeddings.update(module.parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            factor = ADAMW_BACKBONE_FACTOR if parameter in of_backbone else 1.0
            decays = parameter.ndim > 1 and parameter not in embeddings
            decay = solver.weight_decay if decays else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_factor": factor}
            for (factor, decay), parameters in groups.items()
        ],
        lr=0.0,
        betas=(solver.momentum, 0.999),
    )


OPTIMIZERS = {"sgd": build_optimizer, "adamw": build_adamw}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of the next update; when it drops, the momentum shrinks with it.

    PARITY: the update here is p -= rate * buffer, so that a smaller rate already damps what the
    buffer carries; the published system scales the buffer as well, and so do we.
    """
    for group in optimizer.param_groups:
        before, group["lr"] = group["lr"], rate * group["lr_factor"]
        if group["lr"] >= before:
            continue
        for parameter in group["params"]:
            buffer = optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                buffer.mul_(group["lr"] / before)


def lay_out_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives loaded momentum the memory layout of its parameters.

    A checkpoint keeps the layout of the training that wrote it, contiguous or channels_last. The
    fused step assumes that both agree: otherwise it fails on CUDA, and on a CPU it adds values of
    different places.
    """
    for parameter, state in optimizer.state.items():
        buffer = state.get("momentum_buffer")
        if buffer is not None and buffer.stride() != parameter.stride():
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
