import math

import numpy as np
import pytest
import torch

from lib.modeling.losses import (
    bag_loss,
    pcl_loss,
    refine_bag_loss,
    refine_cls_loss,
    refine_integrity_loss,
)
from tests.modeling import literal
from tests.modeling.cases import random_labels

FAR = -math.log(1e-6)  # the largest that one logarithm can be


def softmax(rng, shape, axis):
    values = np.exp(3 * rng.standard_normal(shape))
    return (values / values.sum(axis=axis, keepdims=True)).astype(np.float32)


@pytest.fixture(params=range(40))
def case(request):
    """Random scores and targets of one stage, as numpy arrays by name."""
    rng = np.random.default_rng(request.param)
    num, num_classes = int(rng.integers(1, 12)), int(rng.integers(1, 5))
    shape = (num, num_classes + 1)
    labels = random_labels(rng, num_classes)
    allowed = [-1, 0, *(np.flatnonzero(labels) + 1)]
    column = rng.choice(allowed, num)
    number = rng.choice(
        [0, 1, 2, 7], num
    )  # 2 is the background's; 7 although there may be 1 proposal
    cluster_class = {0: -1, 1: 1, 2: 0, 7: num_classes}
    return {
        "cls_prob": softmax(rng, shape, 1),
        "det_prob": softmax(rng, shape, 0),
        "integrity": rng.random(shape, np.float32),
        "labels": labels,
        "column": column,
        "weight": (rng.random(num) * (column >= 0)).astype(np.float32),
        "integrity_target": rng.integers(0, 2, num).astype(np.float32),
        "number": number,
        "cluster_column": np.array([cluster_class[n] for n in number]),
    }


@pytest.mark.parametrize(
    ("fast", "slow", "names"),
    [
        (bag_loss, literal.bag, ["cls_prob", "det_prob", "labels"]),
        (pcl_loss, literal.pcl, ["cls_prob", "number", "cluster_column"]),
        (refine_cls_loss, literal.refine_cls, ["cls_prob", "column", "weight"]),
        (
            refine_integrity_loss,
            literal.refine_integrity,
            ["integrity", "column", "weight", "integrity_target"],
        ),
        (
            refine_bag_loss,
            literal.refine_bag,
            ["cls_prob", "integrity", "column", "weight", "labels"],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_equals_the_literal_loop(case, fast, slow, names):
    loss = fast(*(torch.as_tensor(case[name]) for name in names))
    assert loss.item() == pytest.approx(slow(*(case[name] for name in names)), rel=1e-5, abs=1e-7)


# -- by hand ------------------------------------------------------------------------------------


def test_bag_by_hand():
    cls_prob = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    det_prob = torch.tensor([[0.5, 1.0], [0.5, 0.0]])
    # The image's scores are 0.375 and 0.5; both columns are present.
    expected = -(math.log(0.375) + math.log(0.5)) / 2
    assert bag_loss(cls_prob, det_prob, torch.ones(1)).item() == pytest.approx(expected)


def test_pcl_by_hand():
    cls_prob = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1], [0.5, 0.5]])
    number, column = torch.tensor([1, 1, 2, 0]), torch.tensor([1, 1, 0, -1])
    # Cluster 1: twice the mean (0.4, 0.6) against (0, 1). Cluster 2: (0.9, 0.1) against (1, 0).
    expected = 12 * (2 * -math.log(0.6) - math.log(0.9)) / (3 + 1e-6)
    assert pcl_loss(cls_prob, number, column).item() == pytest.approx(expected)


def test_refine_cls_and_integrity_by_hand():
    prob = torch.tensor([[0.1, 0.9], [0.4, 0.6], [0.3, 0.7]])
    column, weight = torch.tensor([1, 0, -1]), torch.tensor([0.5, 2.0, 0.0])
    expected = (-math.log(0.9) * 0.5 - math.log(0.4) * 2) / 2
    assert refine_cls_loss(prob, column, weight).item() == pytest.approx(expected)
    # Only the first counts: background has no integrity.
    loss = refine_integrity_loss(prob, column, weight, torch.tensor([0.0, 1.0, 1.0]))
    assert loss.item() == pytest.approx(0.5 * 0.9**2 * 0.5)


def test_refine_bag_by_hand():
    cls_prob = torch.tensor([[0.5, 0.5, 0.9], [0.2, 0.8, 0.1]])
    integrity = torch.tensor([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5]])
    column, weight = torch.tensor([1, 0]), torch.tensor([0.5, 2.0])
    # Class 0 (column 1): only proposal 0 is labelled with it. Background: only proposal 1.
    # Class 1 is absent: its best proposal is 0, with weight 1.
    expected = -(2 * math.log(0.1) + 0.5 * math.log(0.25) + math.log(1 - 0.45)) / 3
    labels = torch.tensor([1.0, 0.0])
    loss = refine_bag_loss(cls_prob, integrity, column, weight, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_present_class_without_proposals_adds_a_constant():
    """As published: proposal 0 wins with a score of 0, which no gradient can change."""
    cls_prob = torch.tensor([[0.5, 0.5], [0.2, 0.8]], requires_grad=True)
    integrity = torch.full((2, 2), 0.5, requires_grad=True)
    column, weight = torch.tensor([1, 1]), torch.tensor([0.25, 1.0])
    loss = refine_bag_loss(cls_prob, integrity, column, weight, torch.ones(1))
    expected = (FAR * 0.25 - math.log(0.4)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert cls_prob.grad.tolist() == [[0, 0], [0, pytest.approx(-1 / 0.8 / 2)]]


# -- edges --------------------------------------------------------------------------------------


def test_no_labels_give_no_loss_and_no_gradient():
    prob = torch.rand(3, 4, requires_grad=True)
    none, zero = torch.full((3,), -1), torch.zeros(3)
    losses = [
        refine_cls_loss(prob, none, zero),
        refine_integrity_loss(prob, none, zero, zero),
        refine_bag_loss(prob, prob, none, zero, torch.ones(3)),
        pcl_loss(prob, torch.zeros(3, dtype=torch.int64), none),
    ]
    assert [loss.item() for loss in losses] == [0.0] * 4
    sum(losses).backward()
    assert prob.grad.abs().sum() == 0


def test_certainty_costs_no_more_than_the_clamp_allows():
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    first, weight = torch.ones(1, dtype=torch.int64), torch.ones(1)
    assert bag_loss(zero, zero, torch.ones(1)).item() == pytest.approx(FAR, rel=1e-5)
    assert bag_loss(one, one, torch.ones(1)).item() == pytest.approx(1e-6, rel=0.1)
    assert refine_cls_loss(zero, first, weight).item() == pytest.approx(FAR, rel=1e-5)
    assert pcl_loss(torch.tensor([[1.0, 0.0]]), first, first).item() == pytest.approx(
        12 * FAR, rel=1e-2
    )


def test_clusters_may_have_any_numbers():
    prob = torch.rand(4, 3)
    column = torch.tensor([1, 1, 0, -1])
    small = pcl_loss(prob, torch.tensor([1, 1, 2, 0]), column)
    assert torch.equal(pcl_loss(prob, torch.tensor([90, 90, 500, 0]), column), small)


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    prob = torch.rand(4, 3, dtype=torch.float64).mul(0.5).add(0.1).requires_grad_()
    other = torch.rand(4, 3, dtype=torch.float64).mul(0.5).add(0.1).requires_grad_()
    column, weight = torch.tensor([1, 0, 2, -1]), torch.rand(4, dtype=torch.float64)
    target, labels = torch.ones(4, dtype=torch.float64), torch.tensor([1.0, 1.0]).double()
    number = torch.tensor([1, 2, 3, 0])
    assert torch.autograd.gradcheck(lambda a, b: bag_loss(a, b, labels), (prob, other))
    assert torch.autograd.gradcheck(lambda a: pcl_loss(a, number, column), prob)
    assert torch.autograd.gradcheck(lambda a: refine_cls_loss(a, column, weight), prob)
    assert torch.autograd.gradcheck(
        lambda a: refine_integrity_loss(a, column, weight, target), prob
    )
    assert torch.autograd.gradcheck(
        lambda a, b: refine_bag_loss(a, b, column, weight, labels), (prob, other)
    )
