import numpy as np
import pytest
import torch
from torch import nn

from lib.engine.inference import map_ahead, read_passes
from lib.modeling.scoring import proposal_scores, score_passes
from lib.structures import Sample, Scores


def scores_of(num_stages, proposals=3, classes=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shape = (proposals, classes + 1)
    return Scores(
        cls_prob=torch.rand(shape, generator=rng),
        det_prob=torch.rand(shape, generator=rng),
        refine_cls_prob=torch.rand((num_stages, *shape), generator=rng),
        refine_integrity_prob=torch.rand((num_stages, *shape), generator=rng),
    )


def test_score_by_hand():
    cls_prob = torch.tensor([[0.2, 0.8]])
    refine_cls = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]])
    refine_iou = torch.tensor([[[1.0, 0.4]], [[1.0, 0.2]]])
    scores = Scores(cls_prob, cls_prob, refine_cls, refine_iou)
    torch.testing.assert_close(proposal_scores(scores), torch.tensor([[(0.2 + 0.18) / 2]]))


def test_without_stages_the_mil_branch_decides():
    scores = scores_of(0)
    expected = (scores.cls_prob * scores.det_prob)[:, 1:]
    torch.testing.assert_close(proposal_scores(scores), expected)


def test_the_mil_branch_counts_as_much_as_all_stages_where_asked():
    scores = scores_of(3)
    mil = (scores.cls_prob * scores.det_prob)[:, 1:]
    both = (proposal_scores(scores) + mil) / 2
    torch.testing.assert_close(proposal_scores(scores, mil_branch=True), both)
    assert not torch.allclose(both, proposal_scores(scores))
    torch.testing.assert_close(proposal_scores(scores_of(0), mil_branch=True), mil)


@pytest.mark.parametrize("num_stages", [0, 1, 3])
@pytest.mark.parametrize("proposals", [0, 1, 5])
def test_score_against_loops(num_stages, proposals):
    s = scores_of(num_stages, proposals)
    result = proposal_scores(s)
    assert result.shape == (proposals, 2)
    for p in range(proposals):
        for c in range(2):
            branches = [
                s.refine_cls_prob[k, p, c + 1] * s.refine_integrity_prob[k, p, c + 1]
                for k in range(num_stages)
            ] or [s.cls_prob[p, c + 1] * s.det_prob[p, c + 1]]
            assert result[p, c] == pytest.approx(float(sum(branches)) / len(branches))


class ByBoxes(nn.Module):
    def score_views(self, views):
        scores = []
        for view in views:
            num = len(view.boxes)
            none = torch.zeros(0, num, 3)
            scores.append(Scores(view.boxes[:, :3], torch.ones(num, 3), none, none))
        return scores


def sample_with(boxes):
    return Sample(
        image_id=1,
        file_name="x.png",
        image=torch.zeros(3, 4, 4),
        boxes=boxes,
        roi_masks=torch.ones(len(boxes), 7, 7),
        membership=torch.ones(len(boxes), 1, dtype=torch.bool),
        areas=torch.tensor([16]),
        image_labels=torch.zeros(2),
        cluster_id=torch.zeros(len(boxes), dtype=torch.int64),
        cluster_column=torch.full((len(boxes),), -1),
    )


def test_passes_are_averaged():
    passes = [sample_with(torch.full((2, 4), value)) for value in (0.1, 0.3, 0.8)]
    torch.testing.assert_close(score_passes(ByBoxes(), passes, "cpu"), torch.full((2, 2), 0.4))


def test_no_pass_is_an_error():
    with pytest.raises(ValueError, match="no pass"):
        score_passes(ByBoxes(), [], "cpu")


class Recording:
    def __init__(self):
        self.read_idx = []

    def read(self, index):
        self.read_idx.append(index)
        return index

    def view(self, read, scale, flip):
        return (read, scale, flip)


def test_an_image_is_read_once_for_all_its_passes():
    dataset = Recording()
    read, passes = read_passes(dataset, 4, (10, 20), ("none", "both"))
    assert dataset.read_idx == [4]
    views = [(10, "none"), (10, "both"), (20, "none"), (20, "both")]
    assert (read, passes) == (4, [(4, *view) for view in views])


def test_ahead_keeps_the_order_and_its_distance():
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    results = map_ahead(lambda item: -item, items(), 2)
    for n in range(46):
        assert next(results) == -n
        assert len(taken) == n + 4  # this one, one for each thread, and one waiting
    assert list(results) == [-n for n in range(46, 50)]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_comes_when_its_item_is_due(num_threads):
    def fail_at_two(item):
        if item == 2:
            raise ValueError("two")
        return item

    results = map_ahead(fail_at_two, range(9), num_threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_scores_are_finite_numbers_without_gradient():
    result = score_passes(ByBoxes(), [sample_with(torch.rand(2, 4))], "cpu")
    assert not result.requires_grad
    assert np.isfinite(result.numpy()).all()
