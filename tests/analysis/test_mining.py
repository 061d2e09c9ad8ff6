import torch

from lib.analysis.mining import mine_image
from lib.modeling.criterion import CIMCriterion, score_image
from lib.modeling.heads import CIMMiner
from tests.modeling.test_model import draw_image, small_model

OBJECTS = [(0, 4, 4), (1, 24, 40)]


def test_mines_what_training_learns_from():
    model, sample = small_model().train(), draw_image(OBJECTS)
    miner = CIMMiner(seed_fraction=0.3, anti_noise=False)
    mined = mine_image(model, miner, sample)
    found = mined.instances.class_idx
    assert found.shape[0] == 3
    present = set(sample.image_labels.nonzero()[:, 0].tolist())
    assert set(found.unique().tolist()) == {-1, *present}
    assert not mined.scores.cls_prob.requires_grad

    seen = []

    class Watched(CIMMiner):
        def assign(self, instances, *others):
            seen.append(instances)
            return super().assign(instances, *others)

    criterion = CIMCriterion(Watched(seed_fraction=0.3, anti_noise=False))
    criterion(*score_image(model, sample, torch.Generator()))
    (trained,) = seen
    assert torch.equal(trained.class_idx, found)
    assert torch.equal(trained.weight, mined.instances.weight)


def test_nothing_is_mined_without_stages():
    mined = mine_image(small_model(num_stages=0), CIMMiner(), draw_image(OBJECTS))
    assert mined.instances is None
    assert mined.scores.cls_prob.shape[0] == len(mined.iou)
