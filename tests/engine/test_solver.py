from functools import partial

import pytest
import torch
from torch import nn

from lib.config import SolverConfig, load_config
from lib.engine.solver import (
    build_adamw,
    build_optimizer,
    learning_rate,
    set_learning_rate,
)
from lib.modeling.backbones import build_backbone


def test_learning_rate_by_hand():
    solver = SolverConfig(base_lr=0.3, warmup_iters=4, warmup_factor=1 / 3, steps=(6, 8), gamma=0.1)
    expected = [0.1, 0.15, 0.2, 0.25, 0.3, 0.3, 0.03, 0.03, 0.003, 0.003]
    assert [learning_rate(solver, i) for i in range(10)] == pytest.approx(expected)


def test_published_schedule():
    rate = partial(learning_rate, SolverConfig())
    assert rate(0) == pytest.approx(2.5e-4 / 3)
    assert rate(250) == pytest.approx(2.5e-4 * 2 / 3)
    assert rate(500) == rate(29999) == pytest.approx(2.5e-4)
    assert rate(30000) == rate(44999) == pytest.approx(2.5e-5)


def test_no_warmup_and_no_steps_is_constant():
    solver = SolverConfig(base_lr=0.1, warmup_iters=0, steps=())
    assert {learning_rate(solver, i) for i in (0, 1, 10**6)} == {0.1}


def test_steps_must_ascend():
    with pytest.raises(ValueError, match=r"solver.steps: must ascend, got \[5, 3\]"):
        load_config(None, ["solver.steps", "[5, 3]"])


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_groups_hold_everything_that_trains_once():
    model = Small()
    weights, biases = build_optimizer(model, SolverConfig()).param_groups
    assert [id(p) for p in weights["params"]] == [id(model.conv.weight), id(model.bn.weight)]
    assert [id(p) for p in biases["params"]] == [id(model.conv.bias), id(model.bn.bias)]
    assert (weights["weight_decay"], biases["weight_decay"]) == (5e-4, 0.0)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no parameter that trains"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), SolverConfig())


def test_steps_against_plain_arithmetic():
    """Momentum, decay on weights alone, doubled biases, and the buffer's scaling at a drop."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    solver = SolverConfig(
        base_lr=0.3,
        momentum=0.9,
        weight_decay=0.01,
        bias_lr_factor=2.0,
        warmup_iters=2,
        steps=(4,),
        gamma=0.1,
    )
    optimizer = build_optimizer(model, solver)
    twin = {n: p.detach().clone().double() for n, p in model.named_parameters()}
    buffers = {n: torch.zeros_like(p) for n, p in twin.items()}
    before = None
    for i in range(7):
        now = learning_rate(solver, i)
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            decay, factor = (0.0, 2.0) if name == "bias" else (0.01, 1.0)
            if before is not None and now < before:
                buffers[name] *= now / before
            buffers[name] = 0.9 * buffers[name] + p.grad.double() + decay * twin[name]
            twin[name] = twin[name] - now * factor * buffers[name]
        set_learning_rate(optimizer, now)
        optimizer.step()
        before = now
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), twin[name], rtol=1e-5, atol=1e-6)


def test_rising_rate_leaves_the_momentum_alone():
    model = nn.Linear(1, 1)
    optimizer = build_optimizer(model, SolverConfig())
    model.weight.grad = torch.ones(1, 1)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    before = optimizer.state[model.weight]["momentum_buffer"].clone()
    set_learning_rate(optimizer, 1.0)
    assert optimizer.state[model.weight]["momentum_buffer"] == before
    set_learning_rate(optimizer, 0.5)
    torch.testing.assert_close(optimizer.state[model.weight]["momentum_buffer"], before / 2)


def test_adamw_groups():
    """The backbone learns slower; vectors and embeddings do not decay; everything is there once."""
    model = Small()
    model.queries = nn.Embedding(3, 2)
    model.body = build_backbone("resnet18", {"widths": [4, 4, 4, 4], "depths": [1, 1, 1, 1]})
    groups = build_adamw(model, SolverConfig(weight_decay=0.05, momentum=0.8)).param_groups
    where = {p: (g["lr_factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert where.keys() == {p for p in model.parameters() if p.requires_grad}
    assert sum(len(g["params"]) for g in groups) == len(where)
    assert where[model.conv.weight] == (1.0, 0.05)
    assert where[model.conv.bias] == where[model.bn.weight] == (1.0, 0.0)
    assert where[model.queries.weight] == (1.0, 0.0)
    assert {where[p] for p in model.body.parameters()} == {(0.1, 0.05), (0.1, 0.0)}
    assert all(g["betas"] == (0.8, 0.999) for g in groups)
