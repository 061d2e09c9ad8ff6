"""A true VOC2007 devkit, or a piece of one, that CIM_VOC2007 names (.../VOCdevkit/VOC2007)."""

import os

import numpy as np
import pytest

from lib.data.coco import CocoImages, read_coco
from lib.data.images import read_image
from lib.evaluation.coco_eval import evaluate_segm
from lib.evaluation.coco_files import by_image
from lib.evaluation.detections import to_coco_results
from lib.files import read_json
from lib.proposals.generate import generate_proposals
from lib.proposals.overlaps import overlaps_with_masks
from lib.proposals.rle import rle_to_mask
from lib.structures import Detections
from tests.small_training import tool

DEVKIT = os.environ.get("CIM_VOC2007")


@pytest.mark.skipif(DEVKIT is None, reason="CIM_VOC2007 names no devkit")
def test_masks_images_and_proposals_of_a_true_devkit_fit(tmp_path):
    assert tool("data")(["voc", "--voc", DEVKIT, "--output", str(tmp_path)]) == 0
    path = tmp_path / "voc_2012_val.json"
    truth = read_json(path)
    truth["images"] = truth["images"][:8]
    chosen = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in chosen]
    coco = CocoImages(path)
    class_of = {category_id: c for c, category_id in enumerate(coco.category_ids)}
    objects = by_image(truth, read_coco(truth), "VOC2007")
    results = []
    for record in coco.images[:8]:
        assert record.image_id in chosen and objects[record.image_id]
        regions = generate_proposals(
            read_image(f"{DEVKIT}/JPEGImages/{record.file_name}", record.size), 300
        )
        masks = np.stack([rle_to_mask(o["segmentation"]) for o in objects[record.image_id]])
        best = overlaps_with_masks(regions, masks).argmax(axis=0)
        classes = np.array([class_of[o["category_id"]] for o in objects[record.image_id]])
        found = Detections(best, classes, np.ones(len(best), np.float32))
        results += to_coco_results(found, regions, record.image_id, coco.category_ids)
    # The best proposals of real objects find most of them; masks that do not fit find none.
    assert evaluate_segm(truth, results)["metrics"]["ap50"] > 0.5
