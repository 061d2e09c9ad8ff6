import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lib.config import Config, RefineModelConfig, RefineTestConfig
from lib.engine.build import build_refine_trainer
from lib.fast.lanes import SideBySide
from tests.refine.test_mask_rcnn import TRUNK, sample

transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")

from lib.refine.mask2former import (  # noqa: E402
    LOSS_WEIGHTS,
    build_mask2former,
    detect,
    mask2former_losses,
)

TINY = {"width": 64, "queries": 5, "encoder_layers": 1, "decoder_layers": 2, "points": 64}
SMALL = {
    "network": "mask2former",
    "network_args": TINY,
    "backbone": "resnet18",
    "backbone_args": TRUNK,
    "weights": "random",
}


def small(num_classes=2, **changes):
    torch.manual_seed(0)
    return build_mask2former(
        RefineModelConfig(**{**SMALL, **changes}), RefineTestConfig(), num_classes
    )


def losses_of(model, one, seed=0):
    return mask2former_losses(model, one, torch.Generator().manual_seed(seed))


def test_masks_and_losses_are_those_of_transformers_own_network():
    """Its whole network, with our backbone and weights put in; the odd size is padded to 64."""
    model, one = small().train(), sample((40, 56))
    config = transformers.Mask2FormerConfig(
        **model.config.to_diff_dict()
        | {
            "backbone_config": transformers.ResNetConfig(
                embedding_size=4,
                hidden_sizes=[4, 8, 8, 8],
                depths=[1] * 4,
                layer_type="basic",
                out_features=["stage1", "stage2", "stage3", "stage4"],
            )
        }
    )
    theirs = transformers.Mask2FormerForUniversalSegmentation(config).train()
    theirs.model.pixel_level_module.decoder.load_state_dict(model.pixel_decoder.state_dict())
    theirs.model.transformer_module.load_state_dict(model.transformer.state_dict())
    theirs.class_predictor.load_state_dict(model.class_predictor.state_dict())

    def maps(images):
        fine, coarse = model.body.feature_maps(images)[0], model.body.feature_maps(images)[3]
        pooled = [coarse[..., ::2, ::2], coarse[..., ::4, ::4]]
        return SimpleNamespace(feature_maps=[fine, coarse, *pooled])

    theirs.model.pixel_level_module.encoder.forward = maps
    pixels = model.padded(one.image)[None]
    assert pixels.shape == (1, 3, 64, 64)
    torch.manual_seed(7)
    expected = theirs(
        pixel_values=pixels,
        mask_labels=[model.padded(one.masks).float()],
        class_labels=[one.class_idx],
    )
    losses = losses_of(model, one, seed=7)
    total = sum(LOSS_WEIGHTS[name] * value for name, value in losses.items())
    torch.testing.assert_close(total, expected.loss)
    classes, masks = model(pixels[0])
    torch.testing.assert_close(classes[-1], expected.class_queries_logits)
    torch.testing.assert_close(masks[-1], expected.masks_queries_logits)
    assert masks[-1].shape == (1, 5, 16, 16)


def test_every_parameter_gets_a_gradient_and_batch_norms_stay():
    model = small().train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    losses = losses_of(model, sample())
    assert tuple(losses) == tuple(LOSS_WEIGHTS)
    assert all(value.isfinite() and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


@pytest.mark.parametrize("instances", [0, 1, 7])
def test_any_number_of_instances(instances):
    """Also more than the five queries; several processes wait for a gradient of every weight."""
    model = small().train()
    losses = losses_of(model, sample((40, 200), instances))
    assert all(value.isfinite() for value in losses.values())
    assert (losses["mask"] > 0) == (losses["dice"] > 0) == (instances > 0)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_two_images_can_be_learned_by_heart():
    solver = {"base_lr": 2e-3, "warmup_iters": 10, "images_per_update": 2, "clip_grad_norm": 0.1}
    config = Config(refine={"model": SMALL, "solver": {**solver, "steps": [], "max_iter": 100}})
    model = small()
    images = [sample(), sample((56, 40), 1)]
    trainer = build_refine_trainer(config, model, "cpu")
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    totals = [trainer.update(iter(images))["total"] for _ in range(config.refine.solver.max_iter)]
    assert totals[-1] < 0.2 * totals[0]
    model.eval()
    for one in images:
        size = tuple(one.image.shape[-2:])
        with torch.inference_mode():
            best = list(detect(model, one.image, size, RefineTestConfig(score_thresh=0.5)))
        assert sorted(d.class_idx for d in best) == one.class_idx.tolist()
        for detection in best:
            wanted = one.masks[detection.class_idx].bool().numpy()
            assert (detection.mask & wanted).sum() / (detection.mask | wanted).sum() > 0.8


def test_draws_follow_from_the_generator_alone():
    model = small().train()

    def losses(seed):
        torch.rand(1)  # the global generator goes on
        return [value.item() for value in losses_of(model, sample(), seed).values()]

    assert losses(3) == losses(3)
    assert losses(3) != losses(4)


def test_draws_of_several_threads_do_not_mix():
    lanes = SideBySide(small().train(), None, None, 2)
    wait = threading.Barrier(2)

    def together(model, seed):
        wait.wait(timeout=60)
        return [value.item() for value in losses_of(model, sample(), seed).values()]

    one, other = lanes.map(together, [(3,), (3,)])
    assert one == other


class Finds(nn.Module):
    """A network with three queries, whose masks have a cell for every 4 pixels."""

    def __init__(self, logits, masks):
        super().__init__()
        self.logits, self.masks = torch.tensor(logits), torch.stack(masks)

    def padded(self, image):
        return nn.functional.pad(image, (0, 64 - image.shape[-1], 0, 64 - image.shape[-2]))

    def forward(self, image):
        assert image.shape == (3, 64, 64)
        return (self.logits[None],), (self.masks[None],)


def block(y1, y2, x1, x2, inside=20.0):
    """Logits of a (16, 16) mask that is inside between rows y1, y2 and columns x1, x2."""
    logits = torch.full((16, 16), -20.0)
    logits[y1:y2, x1:x2] = inside
    return logits


def found(logits, masks, **test):
    test = RefineTestConfig(**{"score_thresh": 0.1, **test})
    image = torch.zeros(3, 40, 56)  # the image has twice that size
    return list(detect(Finds(logits, masks), image, (80, 112), test))


def test_detections_by_hand():
    """Probabilities of class 0, class 1 and "no object"; masks at the size of the image."""
    probs = torch.tensor([[0.2, 0.7, 0.1], [0.05, 0.05, 0.9], [0.9, 0.05, 0.05]])
    sure, unsure = block(2, 6, 3, 9), block(2, 6, 3, 9, inside=np.log(0.6 / 0.4))
    one, two, three = found(probs.log().tolist(), [sure, sure, unsure])
    assert [d.class_idx for d in (one, two, three)] == [1, 0, 0]
    # The last has 0.9 times a mask of 0.6, which bilinear interpolation lowers at its edge.
    assert one.score == pytest.approx(0.7, abs=0.02)
    assert 0.45 < two.score < 0.54
    assert three.score == pytest.approx(0.2, abs=0.01)
    wanted = np.zeros((80, 112), bool)
    wanted[16:48, 24:72] = True
    for mask in (one.mask, three.mask):
        assert mask.dtype == bool and mask.shape == wanted.shape
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.95
    assert two.mask.sum() < wanted.sum()


def test_what_is_outside_the_image_or_unlikely_is_no_detection():
    likely, rare = [5.0, 0.0, 0.0], [0.0, 0.0, 5.0]
    everywhere, padding = block(0, 16, 0, 16), block(11, 16, 0, 16)
    assert [d.class_idx for d in found([likely, rare], [everywhere] * 2)] == [0]
    assert found([likely], [everywhere])[0].mask.all()
    assert found([likely], [padding]) == []
    assert found([rare], [everywhere]) == []
    many = found([likely] * 20, [everywhere] * 20, detections_per_image=18)
    assert len(many) == 18


def test_coarser_levels_stand_in_for_those_that_a_backbone_lacks():
    assert small().config.feature_strides == [4, 8, 16, 32]
    whole = small(backbone_args={}, backbone="resnet18")
    assert (whole.config.feature_strides, whole.num_coarser) == ([4, 8, 16, 32], 0)
    assert small(finest_stride=8).config.feature_strides == [8, 16, 32]
    vit = {"name": "vit_tiny_patch16_224", "out_index": 1}
    model = small(backbone="timm", backbone_args=vit)
    assert (model.config.feature_strides, model.config.common_stride) == ([16, 32, 64], 16)
    classes, masks = model(model.padded(torch.zeros(3, 40, 56)))
    assert masks[-1].shape == (1, 5, 4, 4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network_args": {"width": 48}}, "network_args do not fit mask2former: width is 48"),
        ({"network_args": {"depth": 3}}, "network_args do not fit mask2former: .*'depth'"),
        ({"backbone": "vgg19"}, "refine.model.backbone: no backbone 'vgg19'"),
        ({"weights": "cim"}, "no CIM network is at hand"),
    ],
)
def test_what_cannot_be_made_is_said(changes, told):
    with pytest.raises(ValueError, match=told):
        small(**changes)


def test_an_image_without_instances_is_background():
    model = small().train()
    empty = replace(sample(instances=0), class_idx=torch.zeros(0, dtype=torch.int64))
    losses = losses_of(model, empty)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert model.class_predictor.weight.grad.any()
