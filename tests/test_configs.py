"""The shipped configurations: the published schedule, and files that say only what differs."""

from pathlib import Path

import pytest
import torch
import yaml

from lib.config import Config, load_config
from lib.modeling.model_builder import build_model

CONFIGS = Path(__file__).parents[1] / "configs"
ALL = sorted(path.name for path in CONFIGS.glob("*.yaml"))
BASE = "resnet50_voc.yaml"

# name: backbone, updates, drop, IoU thresholds of the metric, what the header must quote.
VOC, COCO = (0.25, 0.5, 0.7, 0.75), (0.5, 0.75)
PUBLISHED = {
    BASE: ("resnet50", 45_000, 30_000, VOC, "64.9 51.1 32.4 26.1 68.7 55.9 37.1 30.9"),
    "vgg16_voc.yaml": ("vgg16", 30_000, 20_000, VOC, "65.6 50.8 31.0 25.2"),
    "hrnet48_voc.yaml": ("hrnet48", 45_000, 30_000, VOC, "68.3 52.6 33.7 28.4"),
    "resnet50_voc_point.yaml": ("resnet50", 45_000, 30_000, VOC, "65.2 51.6 33.3 27.2"),
    "resnet50_coco2017.yaml": (
        *("resnet50", 240_000, 200_000, COCO),
        "11.9 22.8 11.1 12.0 23.0 11.3 17.0 29.4 17.0 17.2 29.7 17.3",
    ),
    "vgg16_coco2017.yaml": ("vgg16", 120_000, 100_000, COCO, "No result was published"),
    "hrnet48_coco2017.yaml": ("hrnet48", 240_000, 200_000, COCO, "No result was published"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_effective_numbers_are_the_published_ones(name):
    backbone, max_iter, drop, thresholds, _ = PUBLISHED[name]
    config = load_config(CONFIGS / name)
    solver = config.solver
    assert config.model.backbone == backbone
    assert (solver.max_iter, solver.steps, solver.gamma) == (max_iter, (drop,), 0.1)
    assert (solver.base_lr, solver.bias_lr_factor) == (2.5e-4, 2.0)
    assert (solver.warmup_iters, solver.warmup_factor) == (500, 1 / 3)
    assert (solver.momentum, solver.weight_decay) == (0.9, 5e-4)
    assert (solver.images_per_update, solver.clip_grad_norm) == (4, None)
    for section in (config.input.train_scales, config.test.scales):
        assert section == (480, 576, 688, 864, 1200)
    assert config.input.train_flips == config.test.flips == ("none", "horizontal")
    assert (config.test.score_thresh, config.test.nms_thresh) == (1e-5, 0.3)
    assert (config.test.detections_per_image, config.test.iou_thresholds) == (100, thresholds)
    loss, mining = config.loss, config.mining
    weights = (loss.bag, loss.pcl, loss.refine_bag, loss.refine_cls, loss.refine_integrity)
    assert weights == (1, 1, 1, 1, 3)
    assert (mining.labels, mining.anti_noise, mining.oversized_background) == ("cim", True, False)
    assert (mining.seed_fraction, mining.containment_thresh) == (0.1, 0.85)
    assert (mining.oversized_fraction, mining.thresh_step) == (0.9, 0.1)
    assert (mining.cls_thresh, mining.iou_thresh) == (0.25, 0.5)
    assert (config.model.num_stages, config.model.hidden_dim) == (3, 4096)
    assert (config.model.fuse_channels, config.model.backbone_args) == (None, {})
    prm = config.prm
    assert (prm.image_size, prm.upsample, prm.smooth, prm.peak_thresh) == (448, 8, 1, 10)
    assert (prm.base_lr, prm.backbone_lr_factor, prm.momentum) == (0.01, 0.01, 0.9)
    assert (prm.weight_decay, prm.images_per_update, prm.epochs) == (1e-4, 16, 20)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_says_what_was_published_and_from_what(name):
    text = (CONFIGS / name).read_text()
    header = text[: text.index("\n_BASE_" if "\n_BASE_" in text else "\nmodel")]
    assert all(line.startswith("#") for line in header.splitlines())
    words = " ".join(header.replace("#", " ").split())
    wanted = PUBLISHED[name][-1]
    numbers = [wanted] if wanted.startswith("No") else wanted.split()
    for number in numbers:
        assert words.count(number) >= numbers.count(number)
    assert ("coco2017train" if "coco" in name else "voc2012trainaug") in words
    assert "COB proposals" in words


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {BASE}))
def test_a_file_says_only_what_differs_from_its_base(name):
    content = yaml.safe_load((CONFIGS / name).read_text())
    below = load_config(CONFIGS / content.pop("_BASE_")).model_dump(mode="json")
    for section, values in content.items():
        for key, value in values.items():
            assert below[section][key] != value, f"{section}.{key}"


def test_the_base_is_the_defaults():
    assert load_config(CONFIGS / BASE) == Config()


def test_trunks_without_a_download_start_from_a_file():
    for name in PUBLISHED:
        config = load_config(CONFIGS / name).model
        assert (config.weights == "imagenet") == (config.backbone == "resnet50")


@pytest.mark.parametrize("name", ALL)
def test_every_configuration_builds_a_model(name):
    config = load_config(CONFIGS / name)
    num_classes = 80 if "coco" in name else 20
    with torch.device("meta"):
        model = build_model(config.model, num_classes, pretrained=False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


def test_all_published_configurations_are_there():
    assert set(PUBLISHED) <= set(ALL)
