"""The miner for CUDA against the plain one; on the CPU it computes the same way."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from benchmarks.slow_twins import pairwise_overlaps

from lib.fast import mining
from lib.fast.mining import FastCIMMiner, fast_miner, greedy_nms
from lib.modeling import heads
from lib.modeling.heads import CIMMiner, teachers
from lib.structures import Instances
from tests.modeling.cases import random_labels, random_masks, random_scores


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"labels": "mist"},
        {"complete_by": "cls"},
        {"oversized_background": True},
        {"anti_noise": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(40))
def test_targets_are_those_of_the_plain_miner(seed, changes):
    rng = np.random.default_rng(seed)
    num, num_classes = int(rng.integers(1, 40)), int(rng.integers(1, 5))
    miner = CIMMiner(
        seed_fraction=float(rng.choice([0.1, 0.3, 1.0])),
        containment_thresh=float(rng.choice([0.5, 0.85])),
        oversized_fraction=float(rng.choice([0.5, 0.9])),
        **changes,
    )
    arguments = (
        *teachers(random_scores(rng, num, num_classes, levels=rng.choice([2, 4, None]))),
        torch.as_tensor(np.flatnonzero(random_labels(rng, num_classes))),
        *map(torch.as_tensor, pairwise_overlaps(random_masks(rng, num))),
    )
    plain, fast = (
        one(*arguments, torch.Generator().manual_seed(seed))
        for one in (miner, FastCIMMiner(**asdict(miner)))
    )
    for name, value in vars(plain).items():
        assert torch.equal(getattr(fast, name), value), name


@pytest.mark.parametrize(("num", "present"), [(0, [0, 1]), (5, []), (0, [])])
def test_nothing_to_mine_gives_no_labels(num, present):
    pair = (torch.as_tensor(part) for part in np.ones((2, num, num), np.float32))
    scores = random_scores(np.random.default_rng(0), num, 2)
    present = torch.tensor(present, dtype=torch.int64)
    targets = FastCIMMiner()(*teachers(scores), present, *pair, torch.Generator())
    assert targets.column.tolist() == [[-1] * num] * 3
    assert targets.weight.tolist() == targets.integrity_target.tolist() == [[0.0] * num] * 3


@pytest.mark.parametrize(
    "weight",
    [
        [0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
        [float("nan"), 1.0, float("inf")],
        [float("nan"), float("nan"), -1.0],
        [1e-38, 0.0, 0.0],
    ],
)
def test_draws_are_those_of_the_plain_form(weight):
    weights = torch.tensor([weight, [*weight[:2], 0.0]])
    instances = Instances(torch.tensor([[1, 1, 1], [0, 1, -1]]), weights)
    for seed in range(20):
        fast = mining.anti_noise_sample(instances, 2, torch.Generator().manual_seed(seed))
        plain = heads.anti_noise_sample(instances, torch.Generator().manual_seed(seed))
        assert torch.equal(fast.class_idx, plain.class_idx)
        torch.testing.assert_close(fast.weight, plain.weight, equal_nan=True, rtol=0, atol=0)


def test_sampling_without_a_generator_is_refused():
    scores = random_scores(np.random.default_rng(0), 3, 2)
    with pytest.raises(ValueError, match="generator"):
        FastCIMMiner()(*teachers(scores), torch.tensor([0]), torch.eye(3), torch.eye(3))


def test_cpus_keep_the_plain_miner():
    miner = CIMMiner(labels="mist", seed_fraction=0.2)
    assert fast_miner(miner, "cpu") is miner
    fast = fast_miner(miner, "cuda:1")
    assert isinstance(fast, FastCIMMiner) and asdict(fast) == asdict(miner)


@pytest.mark.parametrize("seed", range(30))
def test_greedy_nms_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 60))
    overlaps = rng.random((2, 3, size, size)) < rng.choice([0.02, 0.1, 0.5])
    overlaps |= overlaps.swapaxes(-1, -2)
    kept = greedy_nms(torch.as_tensor(overlaps))
    for one, got in zip(overlaps.reshape(-1, size, size), kept.reshape(-1, size), strict=True):
        expected = []
        for j in range(size):
            if not any(one[i, j] for i in expected):
                expected.append(j)
        assert got.nonzero()[:, 0].tolist() == expected


def test_greedy_nms_of_a_chain_needs_every_round():
    # Each overlaps the next alone, so that every second one stays, decided one after the other.
    chain = torch.diag(torch.ones(40, dtype=torch.bool), diagonal=1)
    assert greedy_nms(chain | chain.T).tolist() == [i % 2 == 0 for i in range(41)]
