from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.slow_twins import LiteralMiner, pairwise_overlaps

from lib.fast.mining import fast_miner
from lib.modeling.criterion import CIMCriterion
from lib.modeling.heads import CIMMiner
from lib.proposals.overlaps import overlaps
from lib.structures import Scores
from tests.modeling import literal
from tests.modeling.cases import (
    make_sample,
    random_labels,
    random_masks,
    random_scores,
)


def image(seed, num=9, num_classes=3):
    """Random scores, sample and overlaps of one image."""
    rng = np.random.default_rng(seed)
    scores = random_scores(rng, num, num_classes)
    number = rng.integers(0, 3, num)
    sample = make_sample(random_labels(rng, num_classes), number, np.array([-1, 1, 0])[number])
    return scores, sample, *map(torch.as_tensor, pairwise_overlaps(random_masks(rng, num)))


@pytest.mark.parametrize("seed", range(10))
def test_losses_equal_the_literal_loop(seed):
    scores, sample, iou, containment = image(seed)
    labels = sample.image_labels.numpy()
    miner = LiteralMiner()
    expected = dict.fromkeys(("refine_bag", "refine_cls", "refine_integrity"), 0.0)
    expected["bag"] = literal.bag(scores.cls_prob, scores.det_prob, labels)
    expected["pcl"] = literal.pcl(
        scores.cls_prob, sample.cluster_id.tolist(), sample.cluster_column.tolist()
    )
    cls_prob, integrity = scores.cls_prob.numpy(), scores.det_prob.numpy()
    for s in range(3):
        foreground = (cls_prob[:, 1:], integrity[:, 1:], np.flatnonzero(labels).tolist())
        found = miner.mine_stage(s, *foreground, iou.numpy(), containment.numpy())
        column, weight, integrity_target = miner.assign_stage(s, found, iou.numpy())
        weight = weight * (3 if s == 0 else 1)
        cls_prob, integrity = (
            scores.refine_cls_prob[s].numpy(),
            scores.refine_integrity_prob[s].numpy(),
        )
        expected["refine_bag"] += literal.refine_bag(cls_prob, integrity, column, weight, labels)
        expected["refine_cls"] += literal.refine_cls(cls_prob, column, weight)
        expected["refine_integrity"] += literal.refine_integrity(
            integrity, column, weight, integrity_target
        )
    losses = CIMCriterion(CIMMiner(anti_noise=False))(scores, sample, iou, containment)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].sum().item() == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_without_refinement_there_are_two_losses():
    scores, sample, iou, containment = image(0)
    alone = Scores(
        scores.cls_prob,
        scores.det_prob,
        scores.refine_cls_prob[:0],
        scores.refine_integrity_prob[:0],
    )
    losses = CIMCriterion(CIMMiner())(alone, sample, iou, containment)
    assert set(losses) == {"bag", "pcl"}


def test_draws_come_from_the_generator():
    scores, sample, iou, containment = image(3, num=40)
    criterion = CIMCriterion(CIMMiner(seed_fraction=0.5))

    def total(seed):
        generator = torch.Generator().manual_seed(seed)
        losses = criterion(scores, sample, iou, containment, generator)
        return sum(value.sum() for value in losses.values()).item()

    assert total(1) == total(1)
    assert len({total(seed) for seed in range(8)}) > 1


def test_one_proposal_and_uninformative_scores_give_finite_losses():
    for num in (1, 5):
        zeros = torch.zeros(num, 3)
        scores = Scores(zeros, zeros, zeros.expand(3, -1, -1), zeros.expand(3, -1, -1))
        none = torch.zeros(num, dtype=torch.int64)
        sample = make_sample(torch.tensor([1.0, 0.0]), none, none - 1)
        one = torch.ones(num, num)
        losses = CIMCriterion(CIMMiner())(scores, sample, one, one, torch.Generator())
        assert all(torch.isfinite(loss).all() for loss in losses.values())


def test_a_diverged_network_gives_losses_that_are_not_finite():
    """They are for the trainer to see; on the way there nothing fails."""
    scores, sample, iou, containment = image(0)
    broken = Scores(*(torch.full_like(part, torch.nan) for part in vars(scores).values()))
    losses = CIMCriterion(CIMMiner())(broken, sample, iou, containment, torch.Generator())
    assert not torch.isfinite(losses["bag"]) and not torch.isfinite(losses["pcl"])


# -- nothing waits for a GPU (without one: test_cuda_by_fake_tensors.py) --------------------------


def losses_of(scores, sample):
    """The sum of the losses, as after the network in a training step."""
    generator = torch.Generator().manual_seed(0)
    pair = overlaps(sample.membership, sample.areas, sample.num_pixels)
    losses = CIMCriterion(fast_miner(CIMMiner(), "cuda"))(scores, sample, *pair, generator)
    return sum(value.sum() for value in losses.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_synchronisation_with_a_gpu():
    scores, sample, _, _ = image(0, num=20)
    regions = {"membership": torch.ones((20, 6), dtype=torch.bool), "areas": torch.arange(6)}
    sample = replace(sample, **regions).to("cuda")
    scores = Scores(*(part.cuda().requires_grad_() for part in vars(scores).values()))
    losses_of(scores, sample).backward()  # makes handles and the like
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses_of(scores, sample).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
