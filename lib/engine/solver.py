"""Stochastic gradient descent as the published numbers were made (SPEC 6; paper, section 4.1)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class LearningRate:
    """The rate of every update: linear warm-up, then constant with drops."""

    base_lr: float
    warmup_iters: int = 0
    """Updates before the base rate is reached; 0 starts with it."""
    warmup_factor: float = 1 / 3
    """The very first update uses base_lr times this."""
    steps: tuple[int, ...] = ()
    """From the update of this number on (the first is 0), the rate is multiplied by gamma."""
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"solver.steps must ascend, got {list(self.steps)}")

    def __call__(self, iteration: int) -> float:
        """The rate of update `iteration` (from 0), a pure function of it."""
        rate = self.base_lr * self.gamma ** bisect_right(self.steps, iteration)
        if iteration < self.warmup_iters:
            done = iteration / self.warmup_iters
            rate *= self.warmup_factor * (1 - done) + done
        return rate


def build_optimizer(
    model: nn.Module,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bias_lr_factor: float = 2.0,
) -> torch.optim.SGD:
    """SGD over everything that trains, in two groups: weights and biases.

    A bias is a parameter whose name ends in `bias`: those of convolutions, linear layers and
    batch norms alike. Biases learn `bias_lr_factor` times faster and do not decay. The scales of
    batch norms are weights. The rate is 0 until `set_learning_rate` sets it.

    Raises:
        ValueError: no parameter of `model` trains.
    """
    weights, biases = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (biases if name.endswith("bias") else weights).append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": biases, "weight_decay": 0.0, "lr_factor": bias_lr_factor},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no parameter that trains")
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)


def set_learning_rate(optimizer: torch.optim.SGD, rate: float) -> None:
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


def lay_out_momentum(optimizer: torch.optim.SGD) -> None:
    """Gives loaded momentum the memory layout of its parameters.

    A checkpoint keeps that of the training that wrote it, contiguous or channels_last. The fused
    step takes both for equal: with another one it fails on CUDA, and on a CPU adds up what does not
    belong together.
    """
    for parameter, state in optimizer.state.items():
        buffer = state.get("momentum_buffer")
        if buffer is not None and buffer.stride() != parameter.stride():
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
