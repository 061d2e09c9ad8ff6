"""A whole inference, from an image file to detections, as the published system does it."""

import json

import cv2
import numpy as np
import pytest
import torch

from lib.config import RuntimeConfig
from lib.data.coco import CocoImages
from lib.data.loader import CimDataset
from lib.engine.build import prepare_for_inference
from lib.engine.inference import read_passes
from lib.evaluation.detections import select_detections
from lib.modeling.scoring import proposal_scores, score_passes
from lib.structures import Proposals, Regions
from tests.parity.test_model import backbone_of, network

FLIPS = ("none", "horizontal")


class GivenProposals:
    """In place of a ProposalStore: boxes and masks as they were given to the published system."""

    def __init__(self, boxes, roi_masks):
        self.boxes, self.roi_masks = boxes, roi_masks

    def load(self, file_name, size=None):
        whole = Regions(
            labels=np.zeros(size, np.int32),
            membership=np.ones((len(self.boxes), 1), bool),
            areas=np.array([size[0] * size[1]]),
        )
        return Proposals(whole, self.boxes, self.roi_masks)


def data_set(folder, image_bgr, num_classes, store):
    """One image on disk, read as any data set is."""
    height, width = image_bgr.shape[:2]
    assert cv2.imwrite(str(folder / "image.png"), image_bgr)  # lossless
    content = {
        "images": [{"id": 1, "file_name": "image.png", "height": height, "width": width}],
        "annotations": [],
        "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(num_classes)],
    }
    path = folder / "test.json"
    path.write_text(json.dumps(content))
    return CimDataset(CocoImages(path), folder, store)


def plain_scores(model, passes):
    """Mean over the passes, each on its own through the plain network."""
    with torch.no_grad():
        scores = [model(view.image[None], view.boxes, view.roi_masks) for view in passes]
    return torch.stack([proposal_scores(one) for one in scores]).mean(dim=0)


def fast_scores(model, passes):
    return score_passes(prepare_for_inference(model, RuntimeConfig()), passes, "cpu")


@pytest.mark.parametrize("score", [plain_scores, fast_scores])
@pytest.mark.golden("*_tta.npz")
def test_a_whole_inference_with_test_time_augmentation(golden, tmp_path, score):
    num_classes = golden["scores"].shape[1]
    model = network(backbone_of(golden), num_classes + 1).eval()
    store = GivenProposals(golden["boxes"], golden["masks"].astype(bool))
    dataset = data_set(tmp_path, golden["image_bgr"], num_classes, store)

    read, passes = read_passes(dataset, 0, golden["scales"].tolist(), FLIPS)
    scores = score(model, passes).numpy()
    golden.check("scores", scores, rtol=1e-5)

    detections = select_detections(
        scores, read.proposals.boxes, float(golden["score_thresh"]), 0.3, 100
    )
    found = np.stack([detections.class_idx + 1, detections.proposal_idx, detections.scores], axis=1)
    # The published detections stand class by class, ours best first.
    by_class, expected = (
        rows[np.lexsort((rows[:, 1], rows[:, 0]))] for rows in (found, golden["det"])
    )
    golden.check("det", by_class, rtol=1e-5, expected=expected)
    assert (np.diff(detections.scores) <= 0).all()
