import pytest
import torch

from lib.config import ModelConfig
from lib.modeling.backbones import build_backbone
from lib.modeling.criterion import CIMCriterion
from lib.modeling.heads import CIMMiner
from lib.modeling.model_builder import CIMNet, build_model
from lib.proposals.overlaps import overlaps
from tests.modeling.cases import make_sample

SMALL = {
    "backbone": "resnet18",
    "backbone_args": {"widths": [8, 8, 16], "depths": [1, 1, 1], "strides": [1, 2, 1]},
    "weights": "random",
    "fuse_channels": 8,
    "hidden_dim": 32,
}


def small_model(num_classes=2, **changes):
    torch.manual_seed(0)
    return build_model(ModelConfig(**{**SMALL, **changes}), num_classes)


def draw_image(objects, height=48, width=64, noise=0):
    """An image with coloured rectangles (class, y, x) of 16 x 16, and proposals around them.

    Proposals come in fours: an object, its upper half, its left quarter, and far too much.
    """
    generator = torch.Generator().manual_seed(noise)
    image = 0.1 * torch.randn(3, height, width, generator=generator)
    masks = []
    for class_idx, y, x in objects:
        image[class_idx, y : y + 16, x : x + 16] += 2
        image[2, y : y + 8, x : x + 8] += 2
        for h, w in ((16, 16), (8, 16), (16, 4), (32, 32)):
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[y : y + h, x : x + w] = True
            masks.append(mask)
    masks = torch.stack(masks)
    boxes = []
    for mask in masks:
        ys, xs = mask.nonzero().unbind(dim=1)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    labels = torch.zeros(2)
    labels[[class_idx for class_idx, _, _ in objects]] = 1
    num = len(masks)
    number = torch.arange(num) % 4  # the object's first three proposals, and none
    number = torch.where(number < 2, torch.arange(num) // 4 + 1, 0)
    class_of = torch.tensor([class_idx for class_idx, _, _ in objects]).repeat_interleave(4)
    return make_sample(
        labels,
        number,
        (class_of + 1).where(number > 0, -1),
        image=image,
        boxes=torch.tensor(boxes, dtype=torch.float32),
        roi_masks=torch.ones(num, 7, 7),
        membership=masks.flatten(1),
        areas=torch.ones(height * width, dtype=torch.int64),
    )


def losses_of(model, sample, miner=None, seed=0):
    scores = model(sample.image[None], sample.boxes, sample.roi_masks)
    criterion = CIMCriterion(miner or CIMMiner(seed_fraction=0.3))
    generator = torch.Generator().manual_seed(seed)
    losses = criterion(scores, sample, *overlaps(sample.membership, sample.areas), generator)
    return {name: value.sum() for name, value in losses.items()}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "vgg16"])
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(backbone):
    args = SMALL["backbone_args"] if backbone == "resnet18" else {}
    model = small_model(backbone=backbone, backbone_args=args).train()
    sum(losses_of(model, draw_image([(0, 4, 4), (1, 24, 40)])).values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    has_frozen = any(not parameter.requires_grad for parameter in model.parameters())
    assert has_frozen == (backbone != "resnet18")


def test_without_the_integrity_branch_every_parameter_gets_a_gradient():
    model = small_model(integrity=False).train()
    assert not [name for name, _ in model.named_parameters() if "refine_iou" in name]
    miner = CIMMiner(seed_fraction=0.3, complete_by="cls")
    losses = losses_of(model, draw_image([(0, 4, 4), (1, 24, 40)]), miner)
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_two_images_can_be_overfitted():
    """From image-level labels and clusters alone, the objects come out on top in their class."""
    model = small_model().train()
    samples = [
        draw_image([(0, 4, 4), (0, 4, 40)], noise=1),
        draw_image([(1, 20, 30), (1, 0, 0)], noise=2),
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    totals = []
    for iteration in range(120):
        optimizer.zero_grad()
        losses = [losses_of(model, sample, seed=iteration) for sample in samples]
        total = sum(sum(one.values()) + 2 * one["refine_integrity"] for one in losses)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-10:]) / 10 < 0.4 * totals[0]
    for sample in samples:
        with torch.no_grad():
            scores = model(sample.image[None], sample.boxes, sample.roi_masks)
        score = (scores.refine_cls_prob * scores.refine_integrity_prob).mean(dim=0)[:, 1:]  # (P, C)
        present = sample.image_labels > 0
        assert score[:, ~present].max() < 0.05
        score = score[:, present][:, 0]
        assert score.max() > 0.5
        assert score.argmax() % 4 != 3  # an object or a part of it, not far too much


def test_order_of_proposals_does_not_matter():
    model, sample = small_model().eval(), draw_image([(0, 4, 4), (1, 24, 40)])
    order = torch.randperm(len(sample.boxes), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(sample.image[None], sample.boxes, sample.roi_masks)
        moved = model(sample.image[None], sample.boxes[order], sample.roi_masks[order])
    for name in ("cls_prob", "det_prob"):
        torch.testing.assert_close(getattr(moved, name), getattr(plain, name)[order])
    for name in ("refine_cls_prob", "refine_integrity_prob"):
        torch.testing.assert_close(getattr(moved, name), getattr(plain, name)[:, order])


@pytest.mark.parametrize("num", [0, 1, 5])
@pytest.mark.parametrize("size", [(33, 70), (64, 32)])
@pytest.mark.parametrize("num_stages", [0, 3])
def test_any_number_of_proposals_and_any_size(num, size, num_stages):
    model = small_model(num_classes=7, num_stages=num_stages).eval()
    boxes = torch.tensor([[1.0, 2.0, 20.0, 30.0]]).expand(num, -1)
    scores = model(torch.randn(1, 3, *size), boxes, torch.ones(num, 7, 7))
    assert scores.cls_prob.shape == scores.det_prob.shape == (num, 8)
    assert scores.refine_cls_prob.shape == (num_stages, num, 8)
    assert scores.refine_integrity_prob.shape == (num_stages, num, 8)


def test_boxes_are_pooled_where_they_lie():
    """With an identity trunk, a box over a constant patch pools that constant."""
    model = small_model()
    model.Conv_Body = torch.nn.Identity()
    model.Conv_Body.stride = 1
    pooled = []
    model.Box_Head.forward = lambda features, _: pooled.append(features) or torch.zeros(2, 32)
    image = torch.zeros(1, 3, 40, 60)
    image[0, :, 10:24, 30:58] = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    boxes = torch.tensor([[32.0, 12.0, 54.0, 22.0], [0.0, 0.0, 20.0, 9.0]])
    model(image, boxes, torch.ones(2, 7, 7))
    (pooled,) = pooled
    expected = torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 7, 7)
    torch.testing.assert_close(pooled[0], expected)
    assert pooled[1].abs().max() == 0


def test_the_trunk_starts_from_the_prm():
    prm = build_backbone("resnet18", SMALL["backbone_args"])
    config = ModelConfig(**{**SMALL, "weights": "prm"})
    model = build_model(config, 2, prm_backbone=prm.state_dict())
    assert torch.equal(model.Conv_Body.res1[0].weight, prm.res1[0].weight)
    with pytest.raises(ValueError, match="prm.py train"):
        build_model(config, 2)
    assert isinstance(build_model(config, 2, pretrained=False), CIMNet)


def test_the_trunk_starts_from_a_file(tmp_path):
    model = small_model()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    torch.manual_seed(5)
    path = str(tmp_path / "model.pth")
    other = build_model(ModelConfig(**{**SMALL, "weights": path}), 4)
    assert torch.equal(other.Conv_Body.res1[0].weight, model.Conv_Body.res1[0].weight)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        build_model(ModelConfig(**{**SMALL, "weights": str(tmp_path / "none.pth")}), 4)


def test_nothing_is_drawn_from_the_global_generator_in_a_step():
    model, sample = small_model(), draw_image([(0, 4, 4)])
    before = torch.get_rng_state()
    losses_of(model, sample)
    assert torch.equal(torch.get_rng_state(), before)
