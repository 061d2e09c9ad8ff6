"""The settings for mmdetection and detectron2, which are not installed here."""

from __future__ import annotations

import runpy
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest

from lib.data.voc import CLASS_NAMES

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("name", "num_classes"), [("voc", 20), ("coco", 80)])
def test_mmdetection(name, num_classes):
    path = CONFIGS / "mmdet" / f"cim_plus_mask_rcnn_r50_fpn_{name}.py"
    made = runpy.run_path(str(path))
    assert made["_base_"] == "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
    assert "load_from" not in made  # weights trained on masks are none of CIM+
    train = made["train_dataloader"]["dataset"]
    assert "CIM_PSEUDO_LABELS" in train["ann_file"] and "instances" not in train["ann_file"]
    assert train["filter_cfg"]["filter_empty_gt"]
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        classes = made[loader]["dataset"]["metainfo"]["classes"]
        assert type(classes) is tuple
        assert len(classes) == len(set(classes)) == num_classes
        assert made[loader]["dataset"]["data_root"] == ""
    assert made["val_evaluator"]["ann_file"] == made["val_dataloader"]["dataset"]["ann_file"]
    if name == "voc":
        assert made["classes"] == CLASS_NAMES
        heads = made["model"]["roi_head"]
        assert heads["bbox_head"]["num_classes"] == heads["mask_head"]["num_classes"] == 20


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_mmdetection_reads_it(name, monkeypatch):
    if find_spec("mmdet") is None:  # only its configurations are needed, not its mmcv
        pytest.skip("mmdet is not installed")
    config = pytest.importorskip("mmengine.config").Config
    monkeypatch.setenv("CIM_PSEUDO_LABELS", "some/labels.json")
    path = CONFIGS / "mmdet" / f"cim_plus_mask_rcnn_r50_fpn_{name}.py"
    made = config.fromfile(str(path))
    assert made.train_dataloader.dataset.ann_file == "some/labels.json"
    assert made.model.roi_head.mask_head.num_classes == len(made.classes)
    assert made.model.backbone.init_cfg.checkpoint == "torchvision://resnet50"
    assert (made.optim_wrapper.optimizer.lr, made.train_cfg.max_epochs) == (0.02, 12)


class Settings:
    """As detectron2's CfgNode: takes whatever is set."""

    def __init__(self):
        self.merged = None

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        setattr(self, name, Settings())
        return getattr(self, name)

    def merge_from_file(self, path):
        self.merged = path


@pytest.fixture
def detectron2(monkeypatch):
    """Stand-ins for what the snippet imports; returns what it does with them."""
    done = {"registered": {}}

    class DefaultTrainer:
        def __init__(self, cfg):
            done["cfg"] = cfg

        def resume_or_load(self, resume):
            done["resume"] = resume

        def train(self):
            done["trained"] = True

    def register(name, metadata, json_file, image_root):
        done["registered"][name] = (json_file, image_root)

    modules = {
        "detectron2": {"model_zoo": types.SimpleNamespace(get_config_file=str)},
        "detectron2.config": {"get_cfg": Settings, "CfgNode": Settings},
        "detectron2.data": {},
        "detectron2.data.datasets": {"register_coco_instances": register},
        "detectron2.engine": {"DefaultTrainer": DefaultTrainer},
        "detectron2.evaluation": {"COCOEvaluator": object},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return done


def test_detectron2(detectron2, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cim_plus_voc.py", "labels.json"])
    runpy.run_path(str(CONFIGS / "detectron2" / "cim_plus_voc.py"), run_name="__main__")
    cfg = detectron2["cfg"]
    assert cfg.merged == "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 20
    assert "ImageNet" in cfg.MODEL.WEIGHTS
    assert detectron2["registered"][cfg.DATASETS.TRAIN[0]] == (
        "labels.json",
        "data/VOC2012/JPEGImages",
    )
    assert cfg.DATASETS.TEST[0] in detectron2["registered"]
    assert detectron2["trained"] and detectron2["resume"]
