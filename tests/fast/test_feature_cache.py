"""Kept features of frozen layers: the same training, never a stale map, within the bound."""

import copy
import logging
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.config import Config, PRMConfig
from lib.engine.build import build_trainer
from lib.fast.feature_cache import FeatureCache, allowed_features, plan_features
from lib.fast.network import FastCIMNet
from lib.modeling.backbones import build_backbone
from lib.modeling.heads import CIMMiner, Heads
from lib.modeling.mask_fuse import MaskFuse
from lib.modeling.model_builder import CIMNet
from lib.prm.network import PeakResponseNet
from lib.prm.train import kept_features, train_prm
from lib.prm.train import score_images as score_prm
from tests.modeling.test_model import draw_image, losses_of
from tests.prm.test_train import make_images

LITE = {"name": "tf_efficientnet_lite0", "output_stride": 16}
RESNET = {"widths": [8, 16], "depths": [1, 1], "strides": [1, 2], "stem_pool": False}
SAMPLES = [draw_image([(0, 4, 4), (1, 24, 40)], noise=1), draw_image([(1, 20, 30)], noise=2)]


def backbone(kind: str):
    """By how much of it is frozen."""
    torch.manual_seed(0)
    if kind == "resnet, stem":
        net = build_backbone("resnet18", RESNET)
        net.res1.requires_grad_(False)
    else:
        net = build_backbone("timm", {**LITE, "frozen": {"all": 5, "some": 3}[kind]})
    for module in net.modules():  # so that features neither vanish nor explode
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.train()


KINDS = ("all", "some", "resnet, stem")


def network(kind: str) -> CIMNet:
    body = backbone(kind)
    return CIMNet(body, MaskFuse(body.out_channels, 4, 8), Heads(8, 2, 3, True)).train()


class Counting(FeatureCache):
    """Counts what had to be computed."""

    computed = 0

    def _keep(self, key, features):
        type(self).computed += 1
        return super()._keep(key, features)


@pytest.fixture
def counting():
    Counting.computed = 0
    return Counting


def gradients_of(model, sample):
    model.zero_grad()
    losses = losses_of(model, sample)
    sum(losses.values()).backward()
    return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_disk", [False, True])
def test_losses_and_gradients_are_those_without(kind, on_disk, tmp_path, counting):
    plain = network(kind)
    features = counting(
        plain.Conv_Body, 1e9, tmp_path / "features" if on_disk else None, torch.float32
    )
    fast = FastCIMNet(plain, kept=features)
    for _ in range(2):
        for sample in SAMPLES:
            expected_losses, expected = gradients_of(plain, sample)
            losses, found = gradients_of(fast, sample)
            for name, loss in expected_losses.items():
                torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=1e-7)
            assert found.keys() == expected.keys()
            for name, grad in expected.items():
                torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
    assert counting.computed == len(SAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_is_close_and_the_same_whether_kept_or_not(kind, counting):
    plain = network(kind)
    kept = FastCIMNet(plain, kept=counting(plain.Conv_Body, 1e9))
    full = FastCIMNet(plain, kept=counting(plain.Conv_Body, 0))
    expected = losses_of(plain, SAMPLES[0])
    for _ in range(2):
        losses = losses_of(kept, SAMPLES[0])
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name], loss, rtol=1e-2, atol=1e-4)
        again = losses_of(full, SAMPLES[0])
        assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert counting.computed == 1 + 2
    assert full.kept.bytes == 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_another_image_or_other_weights_are_computed(on_disk, tmp_path, counting):
    net = backbone("some")
    features = counting(net, 1e9, tmp_path if on_disk else None, torch.float32)
    image = SAMPLES[0].image[None]
    seen = [image, image.flip(3), image[..., :-8], image + 1e-3]
    for one in seen * 2:
        torch.testing.assert_close(features(net, one), net(one))
    assert counting.computed == len(seen)
    assert len({one.sum().item() for one in map(net, seen)}) == len(seen)

    frozen = next(p for p in net.parameters() if not p.requires_grad)
    with torch.no_grad():
        frozen.mul_(1.5)
    torch.testing.assert_close(features(net, image), net(image))
    assert counting.computed == len(seen) + 1
    other = copy.deepcopy(net.state_dict())
    net.load_state_dict({n: t + 0.01 if t.is_floating_point() else t for n, t in other.items()})
    torch.testing.assert_close(features(net, image), net(image))
    net.load_state_dict(other)
    torch.testing.assert_close(features(net, image), net(image))
    # On disk the maps of these weights were still there.
    assert counting.computed == len(seen) + (2 if on_disk else 3)


def test_what_trains_does_not_count(counting):
    net = backbone("some")
    features = counting(net, 1e9)
    features(net, SAMPLES[0].image[None])
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.1)
    features(net, SAMPLES[0].image[None])
    assert counting.computed == 1


def size_on_disk(folder) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*.npy"))


@pytest.mark.parametrize("on_disk", [False, True])
def test_bound_holds(on_disk, tmp_path, counting):
    net = backbone("all")
    image = SAMPLES[0].image[None]
    size = 2 * net(image).numel() + 128
    features = counting(net, 2.5 * size, tmp_path if on_disk else None)
    for factor in (1, 2, 3, 1, 2, 3):
        features(net, factor * image)
    assert counting.computed == 3 + 1  # the third every time
    assert features.bytes == 2 * size
    if not on_disk:
        return
    assert size_on_disk(tmp_path) == 2 * size

    again = counting(net, 2.5 * size, tmp_path)  # another process
    again(net, image)
    assert counting.computed == 4
    other = backbone("resnet, stem")
    Counting(other, 2.5 * size, tmp_path)(other, image)  # makes room for its own
    assert size_on_disk(tmp_path) <= 2.5 * size
    torch.testing.assert_close(again(net, image), net(image), rtol=1e-2, atol=1e-2)


def test_killed_writer_leaves_no_half_file(tmp_path, monkeypatch, counting):
    net = backbone("all")
    image = SAMPLES[0].image[None]

    def killed(file, array):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            counting(net, 1e9, tmp_path)(net, image)
    assert not [*tmp_path.glob("*/*.npy")]

    features = counting(net, 1e9, tmp_path)
    features(net, image)
    (file,) = tmp_path.glob("*/*.npy")
    part = file.with_name(f".{file.name}.x.part")  # what a power cut leaves
    part.write_bytes(b"half")
    os.utime(part, (time.time() - 3600,) * 2)
    computed = counting.computed
    counting(net, 1e9, tmp_path)(net, image)
    assert counting.computed == computed
    assert not part.exists()


def test_damaged_file_is_computed_again(tmp_path, caplog, counting):
    net = backbone("all")
    image = SAMPLES[0].image[None]
    counting(net, 1e9, tmp_path)(net, image)
    (file,) = tmp_path.glob("*/*.npy")
    file.write_bytes(file.read_bytes()[:-10])
    expected = net(image)
    found = counting(net, 1e9, tmp_path)(net, image)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert str(file) in caplog.text
    assert counting.computed == 2


def test_features_too_large_for_float16_are_not_kept(counting):
    net = backbone("all")
    image = SAMPLES[0].image[None]
    with torch.no_grad():
        net.net.blocks[-1][-1].bn3.weight.fill_(1e9)
    for _ in range(2):
        torch.testing.assert_close(counting(net, 1e9)(net, image), net(image))
    assert counting.computed == 0


def test_training_is_the_same_in_lanes_and_together(counting):
    config = Config(mining=CIMMiner(), solver={"images_per_update": 2, "base_lr": 1e-3})
    updates = {}
    for name, lanes, together in (("plain", 1, False), ("lanes", 2, False), ("together", 1, True)):
        model = network("some")
        kept = None if name == "plain" else counting(model.Conv_Body, 1e9, dtype=torch.float32)
        one = config.model_copy(
            update={"runtime": config.runtime.model_copy(update={"images_together": together})}
        )
        trainer = build_trainer(one, model, "cpu", lanes, kept=kept)
        updates[name] = [trainer.update(iter(SAMPLES))["total"] for _ in range(3)]
    np.testing.assert_allclose(updates["lanes"], updates["plain"], rtol=1e-4)
    np.testing.assert_allclose(updates["together"], updates["plain"], rtol=1e-4)
    assert counting.computed == 2 * len(SAMPLES)


def test_views_together_score_as_without():
    plain = network("some").eval()
    fast = FastCIMNet(plain, kept=FeatureCache(plain.Conv_Body, 1e9, dtype=torch.float32))
    views = [*SAMPLES, replace(SAMPLES[0], image=SAMPLES[0].image.flip(2))]
    with torch.inference_mode():  # and what it kept can be trained on
        expected = FastCIMNet(plain).score_views(views)
        found = fast.score_views(views)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cls_prob, other.cls_prob)
    fast.train()
    gradients_of(fast, SAMPLES[0])


@pytest.mark.parametrize("frozen", [3, 5])
def test_prm_learns_the_same(frozen, tmp_path, counting):
    images = make_images(tmp_path)
    recipe = PRMConfig(
        backbone="timm",
        backbone_args={**LITE, "frozen": frozen},
        epochs=4,
        images_per_update=4,
        flips=("none", "horizontal"),
    )
    states = []
    for kept in (False, True):
        torch.manual_seed(0)
        net = PeakResponseNet(2, recipe)
        features = counting(net.backbone, 1e9, dtype=torch.float32) if kept else None
        train_prm(net, images, recipe, 3, tmp_path / f"{kept}.pth", {}, kept=features)
        score_prm(net, images, 4, kept=features)
        states.append(net.state_dict())
    assert 12 < counting.computed <= 24 < 4 * 12  # of 12 images and their mirror images
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_estimate_and_place(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    net = backbone("all")
    pixels = 100 * 448**2
    size = 2 * 320 / 16**2 * pixels / 1e9
    monkeypatch.setattr("lib.fast.feature_cache.free_memory", lambda: 1e9)
    features = plan_features(net, 2, pixels, 3.0, tmp_path)
    assert features.folder is None
    assert f"{size:.2f} GB in float16, each used 3.0 times, kept in memory" in caplog.text
    monkeypatch.setattr("lib.fast.feature_cache.free_memory", lambda: 1e7)
    assert plan_features(net, 2, pixels, 3.0, tmp_path).folder == tmp_path / "features"
    assert str(tmp_path / "features") in caplog.text
    plan_features(net, size / 4, pixels, 3.0, tmp_path)
    assert "25% of them, by runtime.feature_cache_gb" in caplog.text
    assert plan_features(net, 2, pixels, 1.0, tmp_path) is None
    assert "not kept" in caplog.text
    assert plan_features(net, 0, pixels, 3.0, tmp_path) is None
    nothing = build_backbone("resnet18", RESNET)
    assert plan_features(nothing, 2, pixels, 3.0, tmp_path) is None
    assert "ResNet18 has nothing frozen" in caplog.text


def test_without_a_setting_only_whole_frozen_backbones_on_a_cpu_are_kept():
    whole, part = backbone("all"), backbone("some")
    assert allowed_features(None, whole, "cpu") > 0
    assert allowed_features(None, whole, "cuda") == allowed_features(None, part, "cpu") == 0
    assert allowed_features(2, part, "cuda") == 2
    assert allowed_features(0, whole, "cpu") == 0


def test_published_backbones_are_split_where_they_are_frozen(tmp_path):
    frozen = {"vgg16": 2, "resnet50": 2, "hrnet48": 0}
    for name, count in frozen.items():
        net = build_backbone(name).train()
        assert len(net.frozen_parts()) == count, name
    # The batch norms of the PRM follow the batch: nothing to keep, though no parameter trains.
    net = PeakResponseNet(2, PRMConfig(backbone="resnet18", backbone_args=RESNET))
    net.backbone.res1.requires_grad_(False)
    images = make_images(tmp_path)
    assert kept_features(net, images, PRMConfig(flips=("none",)), 1, tmp_path) is None
