"""CIM+ on VOC 2012 in detectron2: Mask R-CNN, ResNet-50-FPN, on the pseudo labels of CIM.

    python configs/detectron2/cim_plus_voc.py \\
        Outputs/resnet50_voc/<run>/pseudo_labels/voc2012trainaug.json

Run it in the folder that `data/` lies in. 12 epochs of 10,582 images, 16 an update. For other data
change the files and the number of classes; the rest stays.
"""

import sys

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator

IMAGES = "data/VOC2012/JPEGImages"
VALIDATION = "data/VOC2012/annotations/voc_2012_val.json"
NUM_CLASSES = 20


def configuration() -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(
        model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    )
    cfg.MODEL.WEIGHTS = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"  # never weights from masks
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.INPUT.MASK_FORMAT = "bitmask"  # the pseudo labels are run lengths, not polygons
    cfg.DATASETS.TRAIN = ("cim_pseudo_labels",)
    cfg.DATASETS.TEST = ("voc_2012_val",)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True  # an image without one has objects not found
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.BASE_LR = 0.02
    cfg.SOLVER.MAX_ITER = 8000
    cfg.SOLVER.STEPS = (5300, 7300)
    cfg.OUTPUT_DIR = "work_dirs/cim_plus_voc_detectron2"
    return cfg


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        # Writes coco_instances_results.json, which tools/evaluate.py reads.
        return COCOEvaluator(dataset_name, ("segm",), output_dir=cfg.OUTPUT_DIR)


def main(pseudo_labels: str) -> dict | None:
    register_coco_instances("cim_pseudo_labels", {}, pseudo_labels, IMAGES)
    register_coco_instances("voc_2012_val", {}, VALIDATION, IMAGES)
    trainer = Trainer(configuration())
    trainer.resume_or_load(resume=True)
    return trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
