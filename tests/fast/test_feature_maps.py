"""Kept maps of a frozen backbone: the same losses and gradients, every image computed once."""

import copy
import json

import pytest
import torch

from lib.config import Config
from lib.data.coco import CocoImages
from lib.engine import build
from lib.fast.feature_cache import FeatureCache
from lib.fast.feature_maps import KeptMaps, PackedMaps
from lib.modeling.backbones import build_backbone
from lib.refine.data import InstanceDataset
from lib.refine.mask_rcnn import mask_rcnn_losses
from tests.refine.test_mask_rcnn import sample, small

LITE = {"name": "tf_efficientnet_lite0", "frozen": 5}
MODEL = {"backbone": "timm", "backbone_args": LITE, "finest_stride": 8, "fpn_norms": True}


def keep(model, dtype=torch.float32):
    body = model.backbone.body
    packed = PackedMaps(body, model.backbone.levels)
    body.feature_maps = KeptMaps(packed, FeatureCache(packed, 1e9, dtype=dtype))
    return body.feature_maps.kept


def gradients_of(model, one):
    model.zero_grad()
    losses = mask_rcnn_losses(model, one, torch.Generator().manual_seed(0))
    sum(losses.values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_gradients_are_those_without(monkeypatch):
    model = small(**MODEL).train()
    samples = [sample(size) for size in ((40, 56), (64, 33))]
    expected = [gradients_of(model, one) for one in samples]
    kept = keep(model)
    names = set(model.state_dict())
    for _ in range(2):
        for one, wanted in zip(samples, expected, strict=True):
            torch.testing.assert_close(gradients_of(model, one), wanted, rtol=1e-4, atol=1e-6)
    assert len(kept._kept) == len(samples)
    assert set(model.state_dict()) == names
    # A lane has its own copy and the same cache; what it asks for is there already.
    lane = copy.deepcopy(model)
    monkeypatch.setattr(PackedMaps, "compute", None)
    gradients_of(lane, samples[0])


def test_a_test_computes_them():
    model = small(**MODEL).eval()
    image = torch.randn(1, 3, 64, 96)
    expected = model.backbone(image)
    kept = keep(model)
    torch.testing.assert_close(model.backbone(image), expected, rtol=0, atol=0)
    assert not kept._kept


@pytest.mark.parametrize(
    ("frozen", "updates", "keeps"), [(5, 8, True), (5, 1, False), (3, 8, False)]
)
def test_it_is_put_in_place_where_it_pays(frozen, updates, keeps, tmp_path):
    """All frozen, and every view of an image is looked at more than once."""
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 56}]
    ann = {"id": 1, "image_id": 1, "category_id": 1, "score": 0.9}
    content = {"images": images, "annotations": [ann], "categories": [{"id": 1, "name": "x"}]}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    data = InstanceDataset(CocoImages(path), tmp_path, {1: [ann]})
    model = small(**{**MODEL, "backbone_args": {**LITE, "frozen": frozen}}).train()
    config = Config(
        refine={
            "model": {"finest_stride": 8},
            "solver": {"max_iter": updates, "images_per_update": 1},
            "input": {"train_scales": [64]},
        }
    )
    build.keep_maps(config, model, data, tmp_path)
    assert isinstance(model.backbone.body.feature_maps, KeptMaps) == keeps


def test_maps_come_back_whatever_the_size():
    body = build_backbone("timm", LITE).train()
    packed = PackedMaps(body, [2, 3, 4])
    image = torch.randn(1, 3, 50, 70)
    maps = body.feature_maps(image)
    for found, n in zip(packed.unpack(packed(image), (50, 70)), (2, 3, 4), strict=True):
        torch.testing.assert_close(found, maps[n])
