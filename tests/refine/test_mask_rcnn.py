import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import box_iou

from lib.config import RefineModelConfig, RefineTestConfig, load_config
from lib.fast.lanes import SideBySide
from lib.modeling.backbones import build_backbone
from lib.refine.mask_rcnn import (
    LOSSES,
    BalancedSampler,
    PaddedBatch,
    build_mask_rcnn,
    mask_rcnn_losses,
)
from lib.structures import InstanceSample

TRUNK = {"widths": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "strides": [1, 2, 1, 1]}
SMALL = {
    "backbone": "resnet18",
    "backbone_args": TRUNK,
    "weights": "random",
    "fpn_channels": 8,
    "head_dim": 16,
    "mask_layers": 1,
    "anchor_scale": 4.0,
    "anchors_per_image": 32,
    "rois_per_image": 16,
    "rois_before_nms": 64,
    "rois_after_nms": 32,
}


def small(num_classes=2, **changes):
    torch.manual_seed(0)
    return build_mask_rcnn(
        RefineModelConfig(**{**SMALL, **changes}), RefineTestConfig(), num_classes
    )


def sample(size=(40, 56), instances=2):
    masks = torch.zeros(instances, *size, dtype=torch.uint8)
    boxes = torch.zeros(instances, 4)
    for n in range(instances):
        masks[n, 4 : 20 + n, 5 + 20 * n : 23 + 20 * n] = 1
        boxes[n] = torch.tensor([5 + 20 * n, 4, 23 + 20 * n, 20 + n])
    rng = torch.Generator().manual_seed(1)
    return InstanceSample(
        image_id=1,
        file_name="a.png",
        image=torch.randn(3, *size, generator=rng),
        boxes=boxes,
        class_idx=torch.arange(instances) % 2,
        masks=masks,
    )


def test_the_published_form_is_torchvisions():
    """Every name and shape of the default model, so that its checkpoints load there."""
    with torch.device("meta"):
        ours = build_mask_rcnn(RefineModelConfig(), RefineTestConfig(), 20, pretrained=False)
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    expected = {name: value.shape for name, value in theirs.state_dict().items()}
    # Theirs counts batches where there are no pretrained weights; frozen batch norms do not.
    assert shapes == {n: s for n, s in expected.items() if not n.endswith("num_batches_tracked")}
    assert ours.rpn.anchor_generator.sizes == theirs.rpn.anchor_generator.sizes
    assert ours.rpn.anchor_generator.aspect_ratios == theirs.rpn.anchor_generator.aspect_ratios
    trains = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("backbone.body.conv1", "backbone.body.layer1")) for n in trains)
    assert "backbone.body.layer2.0.conv1.weight" in trains


def test_the_pyramid_takes_the_last_stage_of_every_stride():
    model = small()
    assert model.backbone.strides == [4, 8, 16]
    assert model.backbone.levels == [0, 3]
    levels = model.backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels.values()] == [
        (1, 8, 16, 24),
        (1, 8, 8, 12),
        (1, 8, 4, 6),
    ]
    whole = small(backbone_args={})
    assert whole.backbone.strides == [4, 8, 16, 32, 64]
    assert whole.backbone.levels == [0, 1, 2, 3]


def test_the_pyramid_may_begin_later_and_have_norms():
    """Then its levels are of the size of 1, whatever the size of the backbone's maps."""
    model = small(finest_stride=8, fpn_norms=True)
    assert model.backbone.strides == [8, 16]
    assert model.roi_heads.box_roi_pool.scales == [1 / 8]
    for factor in (1, 30):
        maps = [
            factor * torch.randn(2, layer.channels, 8, 12) for layer in model.backbone.body.layers
        ]
        model.backbone.body.feature_maps = lambda _images, maps=maps: maps
        first, *_ = model.backbone(torch.zeros(2, 3, 64, 96)).values()
        assert first.std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("changes", [{}, {"fpn_norms": True}])
def test_every_parameter_gets_a_gradient_and_batch_norms_stay(changes):
    model = small(**changes).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    losses = mask_rcnn_losses(model, sample(), torch.Generator().manual_seed(0))
    assert tuple(losses) == LOSSES
    assert all(value.isfinite() and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    # The last level of the pyramid has anchors of its own, but no weights.
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("instances", [0, 1])
def test_few_instances(instances):
    model = small().train()
    losses = mask_rcnn_losses(model, sample(instances=instances), torch.Generator())
    assert all(value.isfinite() for value in losses.values())
    assert (losses["mask"] > 0) == (instances > 0)
    sum(losses.values()).backward()


def test_an_image_can_be_learned_by_heart():
    model = small().train()
    one = sample()
    optimizer = torch.optim.Adam(model.parameters(), 0.006)
    rng = torch.Generator().manual_seed(0)
    first = last = None
    for _ in range(100):
        optimizer.zero_grad()
        total = sum(mask_rcnn_losses(model, one, rng).values())
        total.backward()
        optimizer.step()
        first, last = first or total.item(), total.item()
    assert last < 0.3 * first
    with torch.inference_mode():
        (found,) = model.eval()([one.image])
    for number, label in enumerate((1, 2)):
        best = found["boxes"][found["labels"] == label][:1]
        assert box_iou(best, one.boxes[number : number + 1]) > 0.6


def test_draws_follow_from_the_generator_alone():
    model = small().train()

    def losses(seed):
        torch.rand(1)  # the global generator goes on
        values = mask_rcnn_losses(model, sample(), torch.Generator().manual_seed(seed))
        return [value.item() for value in values.values()]

    assert losses(3) == losses(3)
    assert losses(3) != losses(4)


def test_draws_of_several_threads_do_not_mix():
    """Each lane of the Trainer has a replica of the model, and with it a sampler of its own."""
    lanes = SideBySide(small().train(), None, None, 2)
    wait = threading.Barrier(2)

    def together(model, seed):
        wait.wait(timeout=60)
        values = mask_rcnn_losses(model, sample(), torch.Generator().manual_seed(seed))
        return [value.item() for value in values.values()]

    one, other = lanes.map(together, [(3,), (3,)])
    assert one == other


def test_sampler_against_a_hand_table():
    labels = torch.tensor([-1, 0, 1, 2, 0, -1, 0, 3])
    ((positive,), (negative,)) = BalancedSampler(4, 0.5)([labels])
    assert positive.sum() == 2 and negative.sum() == 2
    assert set(positive.nonzero()[:, 0].tolist()) <= {2, 3, 7}
    assert set(negative.nonzero()[:, 0].tolist()) <= {1, 4, 6}
    ((positive,), (negative,)) = BalancedSampler(100, 0.5)([labels])
    assert positive.nonzero()[:, 0].tolist() == [2, 3, 7]
    assert negative.nonzero()[:, 0].tolist() == [1, 4, 6]
    ((positive,), (negative,)) = BalancedSampler(100, 0.5)([torch.full((3,), -1)])
    assert not positive.any() and not negative.any()
    # Every candidate is drawn about as often.
    sampler = BalancedSampler(2, 0.5)
    sampler.generator = torch.Generator().manual_seed(0)
    counts = sum(sampler([labels])[0][0].int() for _ in range(600))
    assert all(150 < counts[n] < 250 for n in (2, 3, 7))


@pytest.mark.parametrize("size", [(40, 56), (33, 100)])
def test_regions_are_pooled_where_they_are(size):
    """Also in small images that are padded, and whatever image came first."""
    pool = small().roi_heads.box_roi_pool
    columns = torch.arange(128).float().expand(1, 1, 96, 128)
    maps = {str(n): nn.functional.avg_pool2d(columns, s) for n, s in enumerate((4, 8))}
    boxes = [torch.tensor([[8.0, 8.0, 36.0, 36.0]])]
    pooled = pool(maps, boxes, [size])
    # A cell holds the mean of its columns; RoIAlign takes it for the value at the left one.
    centres = 8 + (torch.arange(7) + 0.5) * 4 + 1.5
    torch.testing.assert_close(pooled[0, 0, 3], centres, atol=0.1, rtol=0)


def test_images_are_padded_and_not_scaled():
    images = [torch.ones(3, 33, 64), torch.ones(3, 20, 10)]
    batch, targets = PaddedBatch()(images)
    assert batch.tensors.shape == (2, 3, 64, 64)
    assert batch.image_sizes == [(33, 64), (20, 10)]
    assert batch.tensors.sum() == 3 * (33 * 64 + 20 * 10)
    assert targets is None


def test_it_starts_from_the_trunk_of_cim():
    trunk = build_backbone("resnet18", TRUNK)
    state = {f"Conv_Body.{n}": torch.randn_like(v.float()) for n, v in trunk.state_dict().items()}
    model = build_mask_rcnn(
        RefineModelConfig(**{**SMALL, "weights": "cim"}), RefineTestConfig(), 2, state
    )
    for name, value in model.backbone.body.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[f"Conv_Body.{name}"])


def test_it_starts_from_a_file(tmp_path):
    with torch.device("meta"):
        theirs = resnet50(weights=None)
    values = {n: torch.full(v.shape, 0.5) for n, v in theirs.state_dict().items()}
    torch.save(values, tmp_path / "resnet50.pth")
    config = RefineModelConfig(weights=str(tmp_path / "resnet50.pth"), fpn_channels=8, head_dim=8)
    model = build_mask_rcnn(config, RefineTestConfig(), 2)
    assert all((v == 0.5).all() for v in model.backbone.body.state_dict().values())
    with pytest.raises(
        ValueError, match=r"other\.pth: does not fit this ResNet50: .*refine\.model\.weights"
    ):
        model.backbone.body.load_weights({"conv1.weight": torch.zeros(3)}, "other.pth")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"backbone": "vgg19"}, "refine.model.backbone: no backbone 'vgg19'; did you mean vgg16"),
        (
            {"backbone_args": {**TRUNK, "strides": [1, 2, 2, 4]}},
            "strides that double.*got 4, 8, 16, 64",
        ),
        ({"backbone_args": {"width": [1]}}, "backbone_args do not fit resnet18"),
        ({"weights": "cim"}, "no CIM network is at hand"),
        ({"weights": "imagenet"}, "no ImageNet weights to download"),
    ],
)
def test_what_cannot_be_made_is_said(changes, told):
    with pytest.raises(ValueError, match=told):
        small(**changes)


@pytest.mark.parametrize(
    ("recipe", "channels"),
    [("resnet18_shapes", [16, 24, 48, 64]), ("photos", [16, 24, 40, 112, 320])],
)
def test_the_small_recipes_build(recipe, channels):
    config = load_config(f"configs/{recipe}.yaml").refine
    model = build_mask_rcnn(config.model, config.test, 5, pretrained=False)
    assert [layer.channels for layer in model.backbone.body.layers] == channels


def test_an_instance_without_a_mask_trains_all_but_the_mask_head():
    """By its box; the masks of the others are learned as without it."""
    model = small().train()
    both = sample()

    def gradients(of):
        model.zero_grad()
        losses = mask_rcnn_losses(model, of, torch.Generator().manual_seed(0))
        sum(losses.values()).backward()
        return losses, {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
        }

    whole, _ = gradients(both)
    plain, every = gradients(replace(both, has_mask=torch.tensor([True, True])))
    assert {n: v.item() for n, v in plain.items()} == {n: v.item() for n, v in whole.items()}
    partly, _ = gradients(replace(both, has_mask=torch.tensor([True, False])))
    for name in set(LOSSES) - {"mask"}:
        assert partly[name].item() == plain[name].item(), name
    assert partly["mask"].item() != plain["mask"].item()
    # What the mask of the second is does not count.
    empty = both.masks.clone()
    empty[1] = 0
    other, _ = gradients(replace(both, masks=empty, has_mask=torch.tensor([True, False])))
    assert other["mask"].item() == partly["mask"].item()
    boxes, got = gradients(replace(both, has_mask=torch.tensor([False, False])))
    assert boxes["mask"].item() == 0
    of_masks = [grad for name, grad in got.items() if "mask_" in name]
    assert of_masks and not any(grad.any() for grad in of_masks)
    assert got["roi_heads.box_predictor.bbox_pred.weight"].any()
    assert every["roi_heads.mask_predictor.mask_fcn_logits.weight"].any()


def test_an_image_without_instances_is_background():
    model = small().train()
    nothing = sample(instances=0)
    nothing = replace(nothing, class_idx=torch.zeros(0, dtype=torch.int64))
    losses = mask_rcnn_losses(model, nothing, torch.Generator().manual_seed(0))
    assert {name for name, loss in losses.items() if loss.item()} == {"objectness", "classifier"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
