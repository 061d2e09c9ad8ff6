import numpy as np
import pytest
import torch
from benchmarks.slow_twins import LiteralMiner, pairwise_overlaps

from lib.modeling.heads import CIMMiner, Heads, anti_noise_sample, teachers
from lib.structures import Clusters, Instances, Scores
from tests.modeling.cases import random_labels, random_masks, random_scores


def mine(miner, cls_prob, integrity, labels, iou, containment):
    """One stage of mining on plain numpy arrays, as a dict like that of the literal loop."""
    tensors = (torch.as_tensor(cls_prob)[None], torch.as_tensor(integrity)[None])
    present = torch.as_tensor(np.flatnonzero(labels))
    instances = miner.mine(*tensors, present, torch.as_tensor(iou), torch.as_tensor(containment))
    return as_dict(instances, 0)


def as_dict(instances, stage):
    class_idx, weight = instances.class_idx[stage], instances.weight[stage]
    return {
        i: (int(class_idx[i]), float(weight[i])) for i in range(len(class_idx)) if class_idx[i] >= 0
    }


def instances_of(class_idx, weight):
    return Instances(torch.tensor(class_idx)[None], torch.tensor(weight)[None])


def strips(*spans, length=40):
    """Masks of one row that cover pixels a..b-1."""
    masks = np.zeros((len(spans), 1, length), bool)
    for mask, (a, b) in zip(masks, spans, strict=True):
        mask[0, a:b] = True
    return masks


# -- the miner against the literal loop ---------------------------------------------------------


@pytest.mark.parametrize("labels", ["cim", "mist"])
@pytest.mark.parametrize("seed", range(100))
def test_mining_equals_the_literal_loop(seed, labels):
    rng = np.random.default_rng(seed)
    num, num_classes = int(rng.integers(1, 25)), int(rng.integers(1, 5))
    settings = {
        "labels": labels,
        "seed_fraction": float(rng.choice([0.1, 0.3, 0.5, 1.0])),
        "containment_thresh": float(rng.choice([0.5, 0.75, 0.85])),
        "oversized_fraction": float(rng.choice([0.5, 0.9])),
    }
    iou, containment = pairwise_overlaps(random_masks(rng, num))
    image_labels = random_labels(rng, num_classes)
    scores = random_scores(rng, num, num_classes, levels=rng.choice([2, 4, None]))
    arguments = (
        *teachers(scores),
        torch.as_tensor(np.flatnonzero(image_labels)),
        torch.as_tensor(iou),
        torch.as_tensor(containment),
    )
    miner = CIMMiner(anti_noise=False, **settings)
    literal = LiteralMiner(anti_noise=False, **settings)
    for step in ("mine", "__call__"):
        expected = vars(getattr(literal, step)(*arguments))
        for name, value in vars(getattr(miner, step)(*arguments)).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=f"{step}: {name}")


# -- the rules by hand --------------------------------------------------------------------------


def test_an_instance_contains_its_seed_and_not_the_other_way_round():
    # 0: the part 10..14 with the best class score. 1: the whole 8..20. 2: a crumb of the part.
    masks = strips((10, 14), (8, 20), (10, 11), (30, 34), (36, 40))
    iou, containment = pairwise_overlaps(masks)
    assert containment[1, 0] == 1 and containment[0, 1] == np.float32(4 / 12)
    cls_prob = np.array([[0, 0.9], [0, 0.3], [0, 0.2], [0, 0.1], [0, 0.1]], np.float32)
    integrity = np.array([[0, 0.2], [0, 0.5], [0, 0.9], [0, 1.0], [0, 1.0]], np.float32)
    found = mine(CIMMiner(), cls_prob, integrity, [1], iou, containment)
    assert found == {1: (0, pytest.approx(0.3 * 0.5))}


def test_the_integrity_of_the_same_class_decides():
    iou, containment = pairwise_overlaps(strips((10, 14), (8, 20), (9, 15), (30, 34)))
    cls_prob = np.array([[0, 0.9, 0.0], [0, 0.3, 0.0], [0, 0.2, 0.0], [0, 0, 0]], np.float32)
    integrity = np.array([[0, 0.2, 0.9], [0, 0.5, 0.1], [0, 0.4, 0.9], [0, 0, 0]], np.float32)
    assert set(mine(CIMMiner(), cls_prob, integrity, [1, 0], iou, containment)) == {1}


def test_the_class_probability_decides_where_asked():
    # 1 and 2 contain the part 0: 1 has the higher integrity, 2 the higher class probability.
    iou, containment = pairwise_overlaps(strips((10, 14), (8, 20), (9, 17), (30, 34), (36, 40)))
    cls_prob = np.array([[0, 0.9], [0, 0.2], [0, 0.3], [0, 0], [0, 0]], np.float32)
    integrity = np.array([[0, 0.2], [0, 0.5], [0, 0.4], [0, 0], [0, 0]], np.float32)
    assert set(mine(CIMMiner(), cls_prob, integrity, [1], iou, containment)) == {1}
    by_cls = CIMMiner(complete_by="cls")
    # The part contains itself, and is the most probable of all.
    assert mine(by_cls, cls_prob, integrity, [1], iou, containment) == {
        0: (0, pytest.approx(0.9 * 0.2))
    }


def test_the_seeds_of_one_object_find_the_same_instance_once():
    # Two disjoint parts are both seeds (half of the proposals) and lie in the same whole.
    iou, containment = pairwise_overlaps(strips((0, 4), (6, 10), (0, 10), (30, 40)))
    cls_prob = np.array([[0, 0.9], [0, 0.8], [0, 0.5], [0, 0.1]], np.float32)
    integrity = np.array([[0, 0.1], [0, 0.1], [0, 0.7], [0, 1.0]], np.float32)
    miner = CIMMiner(seed_fraction=0.5)
    assert mine(miner, cls_prob, integrity, [1], iou, containment) == {2: (0, pytest.approx(0.35))}
    mist = CIMMiner(labels="mist", seed_fraction=0.5)  # ranks by score: 2 and 3 come first
    assert set(mine(mist, cls_prob, integrity, [1], iou, containment)) == {2, 3}


@pytest.mark.parametrize(
    ("first", "second", "winner"), [(0.5, 0.25, 0), (0.25, 0.5, 1), (0.5, 0.5, 0)]
)
def test_a_claimed_proposal_changes_class_only_for_a_larger_score(first, second, winner):
    iou, containment = pairwise_overlaps(strips((0, 10), (20, 30)))
    cls_prob = np.array([[0, first, second], [0, 0, 0]], np.float32)
    found = mine(CIMMiner(), cls_prob, np.ones((2, 3), np.float32), [1, 1], iou, containment)
    assert found == {0: (winner, max(first, second))}


def test_oversized_proposals_are_no_instances():
    # 0 contains all five, which is 0.9 of them; 1 contains four.
    masks = strips((0, 40), (0, 32), (0, 4), (6, 10), (20, 24))
    iou, containment = pairwise_overlaps(masks)
    assert CIMMiner().oversized(torch.as_tensor(containment)).tolist() == [True] + 4 * [False]
    cls_prob = np.array([[0, 0.1], [0, 0.1], [0, 0.9], [0, 0.1], [0, 0.1]], np.float32)
    integrity = np.array([[0, 1.0], [0, 0.5], [0, 0.4], [0, 0.1], [0, 0.1]], np.float32)
    assert set(mine(CIMMiner(), cls_prob, integrity, [1], iou, containment)) == {1}


def test_targets_by_hand():
    # Instance 0 is 0..10; IoU with it: 1, 6/10, 3/10, 2/10, 0.
    iou, containment = (
        torch.as_tensor(part)
        for part in pairwise_overlaps(strips((0, 10), (0, 6), (0, 3), (0, 2), (20, 30)))
    )
    instances = instances_of([1, -1, -1, -1, -1], [0.5, 0, 0, 0, 0])
    targets = CIMMiner().assign(instances, iou, containment)
    assert targets.column.tolist() == [[2, 2, 2, 0, -1]]
    assert targets.weight.tolist() == [[0.5, 0.5, 0.5, 0.5, 0.0]]
    assert targets.integrity_target.tolist() == [[1, 1, 0, 0, 0]]


def test_thresholds_grow_with_the_stage():
    iou, containment = (
        torch.as_tensor(p) for p in pairwise_overlaps(strips((0, 20), (0, 11), (0, 7)))
    )
    class_idx = torch.tensor([[0, -1, -1]]).expand(3, -1)
    instances = Instances(class_idx, torch.tensor([[1.0, 0, 0]]).expand(3, -1))
    targets = CIMMiner().assign(instances, iou, containment)  # IoU 11/20 and 7/20
    assert targets.integrity_target[:, 1].tolist() == [1, 0, 0]
    assert targets.column[:, 2].tolist() == [1, 1, 0]  # 0.35 is not below the second threshold


def test_oversized_background_is_an_option():
    masks = strips((0, 40), (0, 30), (0, 4), (6, 10), (20, 24))
    iou, containment = (torch.as_tensor(part) for part in pairwise_overlaps(masks))
    instances = instances_of([-1, 0, -1, -1, -1], [0, 0.5, 0, 0, 0])
    as_published = CIMMiner().assign(instances, iou, containment)
    assert as_published.column[0, 0] == 1
    meant = CIMMiner(oversized_background=True).assign(instances, iou, containment)
    assert meant.column.tolist() == [[0, *as_published.column[0, 1:].tolist()]]
    assert meant.weight.tolist() == as_published.weight.tolist()


@pytest.mark.parametrize(("num", "seeds"), [(2, 1), (10, 1), (11, 2), (60, 6), (70, 7), (90, 9)])
def test_the_number_of_seeds(num, seeds):
    """Disjoint proposals: every seed becomes an instance."""
    eye = np.eye(num, dtype=np.float32)
    cls_prob = np.full((num, 2), 0.5, np.float32)
    assert len(mine(CIMMiner(), cls_prob, cls_prob, [1], eye, eye)) == seeds


# -- edges and properties -----------------------------------------------------------------------


@pytest.mark.parametrize(("num", "present"), [(0, [0, 1]), (5, []), (0, [])])
def test_nothing_to_mine_gives_no_labels(num, present):
    iou, containment = (torch.as_tensor(part) for part in np.ones((2, num, num), np.float32))
    scores = random_scores(np.random.default_rng(0), num, 2)
    targets = CIMMiner()(
        *teachers(scores),
        torch.tensor(present, dtype=torch.int64),
        iou,
        containment,
        torch.Generator(),
    )
    assert targets.column.tolist() == [[-1] * num] * 3
    assert targets.weight.tolist() == targets.integrity_target.tolist() == [[0.0] * num] * 3


def test_one_proposal_is_its_own_instance_unless_it_is_oversized():
    one = np.ones((1, 1), np.float32)
    prob = np.full((1, 2), 0.5, np.float32)
    assert mine(CIMMiner(), prob, prob, [1], one, one) == {}
    miner = CIMMiner(labels="mist")
    assert mine(miner, prob, prob, [1], one, one) == {0: (0, 0.25)}


def test_order_of_proposals_does_not_matter():
    rng = np.random.default_rng(5)
    iou, containment = pairwise_overlaps(random_masks(rng, 20, 12, 9))
    scores = random_scores(rng, 20, 3)  # no ties
    order = torch.as_tensor(rng.permutation(20))
    miner, present = CIMMiner(seed_fraction=0.3), torch.tensor([0, 2])
    overlaps = [torch.as_tensor(part) for part in (iou, containment)]
    plain = miner.mine(*teachers(scores), present, *overlaps)
    moved = miner.mine(
        *(part[:, order] for part in teachers(scores)),
        present,
        *(part[order][:, order] for part in overlaps),
    )
    assert torch.equal(moved.class_idx, plain.class_idx[:, order])
    assert torch.equal(moved.weight, plain.weight[:, order])
    assert (plain.class_idx >= 0).any()


# -- anti-noise sampling ------------------------------------------------------------------------


def test_samples_follow_the_weights():
    """P(instance i survives n draws) = 1 - (1 - w_i / sum w)^n, for every class on its own."""
    weight = [0.1, 0.2, 0.7, 1e-9, 3.0, 1.0, 0.0]
    class_idx = [0, 0, 0, 3, 1, 1, -1]
    instances = instances_of(class_idx, weight)
    draws = 20000
    many = Instances(instances.class_idx.expand(draws, -1), instances.weight.expand(draws, -1))
    kept = anti_noise_sample(many, torch.Generator().manual_seed(0))
    rate = (kept.class_idx >= 0).double().mean(dim=0).tolist()
    expected = [1 - 0.9**3, 1 - 0.8**3, 1 - 0.3**3, 1.0, 1 - 0.25**2, 1 - 0.75**2, 0.0]
    for got, p in zip(rate, expected, strict=True):
        assert abs(got - p) <= 4 * (p * (1 - p) / draws) ** 0.5
    # Together, too: the chance that only instance 4 of class 1 stays is (3/4)^2.
    alone = ((kept.class_idx[:, 4] >= 0) & (kept.class_idx[:, 5] < 0)).double().mean()
    assert abs(alone - 0.75**2) < 4 * (0.5625 * 0.4375 / draws) ** 0.5


def test_what_stays_is_unchanged():
    instances = instances_of([0, 1, -1, 0], [0.5, 0.25, 0.0, 0.125])
    kept = anti_noise_sample(instances, torch.Generator().manual_seed(3))
    stays = kept.class_idx >= 0
    assert torch.equal(kept.class_idx[stays], instances.class_idx[stays])
    assert torch.equal(kept.weight, instances.weight.where(stays, 0.0))


@pytest.mark.parametrize(
    ("weight", "may_stay"),
    [
        ([0.0, 0.0, 0.0], {0, 1, 2}),
        ([0.0, 1.0, 0.0], {1}),
        ([float("nan"), 1.0, float("inf")], {1}),
        ([float("nan"), float("nan"), -1.0], {0, 1, 2}),
        ([1e-38, 0.0, 0.0], {0}),
    ],
)
def test_weights_that_are_no_chances(weight, may_stay):
    stayed = set()
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        kept = anti_noise_sample(instances_of([1, 1, 1], weight), generator)
        stays = set(kept.class_idx[0].ge(0).nonzero()[:, 0].tolist())
        assert stays
        stayed |= stays
    assert stayed == may_stay


def test_sampling_is_decided_by_the_generator_alone():
    instances = instances_of([0] * 30, [0.1] * 30)

    def draw(seed):
        return anti_noise_sample(instances, torch.Generator().manual_seed(seed)).class_idx

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(draw(7), draw(7)) and not torch.equal(draw(7), draw(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_without_a_generator_is_refused():
    scores = random_scores(np.random.default_rng(0), 3, 2)
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="generator"):
        CIMMiner()(*teachers(scores), torch.tensor([0]), eye, eye)


# -- the heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", [0, 1, 3])
def test_heads_score(num_stages):
    torch.manual_seed(0)
    model = Heads(in_features=8, num_classes=4, num_stages=num_stages)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    features = torch.randn(6, 8)
    scores = model(features)
    assert scores.cls_prob.shape == scores.det_prob.shape == (6, 5)
    assert scores.refine_cls_prob.shape == (num_stages, 6, 5)
    assert scores.refine_integrity_prob.shape == (num_stages, 6, 5)
    torch.testing.assert_close(scores.cls_prob.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(scores.det_prob.sum(dim=0), torch.ones(5))
    for s in range(num_stages):
        logits = features @ model.refine_cls[s].weight.T + model.refine_cls[s].bias
        torch.testing.assert_close(scores.refine_cls_prob[s], logits.softmax(dim=1))
        logits = features @ model.refine_iou[s].weight.T + model.refine_iou[s].bias
        torch.testing.assert_close(scores.refine_integrity_prob[s], 1 / (1 + (-logits).exp()))


def test_without_the_integrity_branch_all_integrity_is_one():
    model = Heads(in_features=8, num_classes=4, num_stages=2, integrity=False)
    assert not any("refine_iou" in name for name, _ in model.named_parameters())
    scores = model(torch.randn(6, 8))
    assert scores.refine_cls_prob.shape == (2, 6, 5)
    assert torch.equal(scores.refine_integrity_prob, torch.ones(2, 6, 5))


def test_each_stage_learns_from_the_one_before():
    parts = [torch.rand(2, 3, requires_grad=True) for _ in range(2)]
    refine = [torch.rand(3, 2, 3, requires_grad=True) for _ in range(2)]
    cls_prob, integrity = teachers(Scores(*parts, *refine))
    assert torch.equal(cls_prob, torch.stack([parts[0], *refine[0][:2]]))
    assert torch.equal(integrity, torch.stack([parts[1], *refine[1][:2]]))
    assert not cls_prob.requires_grad and not integrity.requires_grad


def test_of_every_cluster_the_most_typical_and_confident_member_is_the_instance():
    iou = torch.tensor([[1, 0.9, 0.6, 0, 0], [0.9, 1, 0.7, 0, 0], [0.6, 0.7, 1, 0, 0]])
    iou = torch.cat([iou, torch.eye(5)[3:]])
    clusters = Clusters(torch.tensor([1, 1, 1, 2, 3]), torch.tensor([2, 2, 2, 1, 0]))
    cls_prob = torch.zeros(2, 5, 3)
    cls_prob[0, :, 2] = 0.2  # all the same to the first teacher: the most typical one
    cls_prob[1, :, 2] = torch.tensor([0.3, 0.3, 0.6, 0.9, 0.9])
    cls_prob[:, 3, 1] = 0.5
    found = CIMMiner(labels="clusters").mine(
        cls_prob, cls_prob, torch.tensor([0, 1]), iou, iou, clusters
    )
    assert found.class_idx.tolist() == [[-1, 1, -1, 0, -1], [-1, -1, 1, 0, -1]]
    expected = [[0, 0.2, 0, 0.5, 0], [0, 0, 0.4, 0.5, 0]]
    assert torch.allclose(found.weight, torch.tensor(expected))


def test_instances_of_clusters_need_clusters():
    miner = CIMMiner(labels="clusters", anti_noise=False)
    arguments = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.tensor([0])
    with pytest.raises(ValueError, match="without clusters"):
        miner(*arguments, torch.eye(2), torch.eye(2))
    none = Clusters(torch.zeros(2, dtype=torch.int64), torch.full((2,), -1))
    targets = miner(*arguments, torch.eye(2), torch.eye(2), clusters=none)
    assert (targets.column == -1).all()
