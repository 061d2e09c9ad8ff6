import numpy as np
import torch
from torch import nn

from lib.config import RefineConfig, RefineInputConfig, RefineTestConfig
from lib.data.coco import ImageRecord
from lib.proposals import rle
from lib.refine.data import InstanceDataset, ReadInstances
from lib.refine.detect import InstanceDetector
from lib.refine.mask_rcnn import pasted


class Finds(nn.Module):
    """A network that finds the same in every image."""

    def __init__(self, boxes, masks):
        super().__init__()
        self.boxes, self.masks = torch.tensor(boxes), torch.stack(masks)[:, None]

    def forward(self, images):
        count = len(self.boxes)
        return [
            {
                "boxes": self.boxes,
                "labels": torch.arange(1, count + 1),
                "scores": torch.linspace(0.9, 0.5, count),
                "masks": self.masks,
            }
        ]


def detect(boxes, masks, size=(40, 60), scale=120, mask_thresh=0.5):
    test = RefineTestConfig(mask_thresh=mask_thresh)
    settings = RefineConfig(input=RefineInputConfig(test_scale=scale), test=test)
    record = ImageRecord(7, "a.png", *size, np.ones(2, np.float32))
    empty = np.zeros((0, *size), np.uint8)
    read = ReadInstances(record, np.zeros((*size, 3), np.uint8), empty, np.zeros(0, np.int64))
    dataset = InstanceDataset.__new__(InstanceDataset)
    detector = InstanceDetector(Finds(boxes, masks), [5, 9, 11], settings)
    return detector(read, dataset.view(read, scale))


def test_masks_are_pasted_at_the_size_of_the_image():
    full, half = torch.ones(28, 28), torch.ones(28, 28)
    half[:, 14:] = 0
    # The image is seen at twice its size.
    found = detect([[20.0, 20.0, 60.0, 60.0], [60.0, 20.0, 116.0, 76.0]], [full, half])
    assert [(r["image_id"], r["category_id"]) for r in found] == [(7, 5), (7, 9)]
    assert np.allclose([r["score"] for r in found], [0.9, 0.5])
    for result, (x1, y1, x2, y2) in zip(found, [(10, 10, 30, 30), (30, 10, 44, 38)], strict=True):
        assert result["segmentation"]["size"] == [40, 60]
        assert result["bbox"] == rle.tight_box(result["segmentation"])
        mask = rle.rle_to_mask(result["segmentation"])
        wanted = np.zeros((40, 60), bool)
        wanted[y1:y2, x1:x2] = True
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.85


def test_masks_below_the_threshold_are_no_detections():
    boxes = [[0.0, 0.0, 50.0, 50.0], [50.0, 20.0, 90.0, 60.0]]
    masks = [torch.full((28, 28), 0.4), torch.full((28, 28), 0.9)]
    assert [r["category_id"] for r in detect(boxes, masks)] == [9]
    assert [r["category_id"] for r in detect(boxes, masks, mask_thresh=0.3)] == [5, 9]


def test_more_masks_than_are_pasted_at_once():
    boxes = [[float(2 * n), 0.0, 30.0 + 2 * n, 40.0] for n in range(3)] * 13
    found = list(pasted(torch.ones(39, 1, 28, 28), torch.tensor(boxes), (40, 60), 0.5))
    assert len(found) == 39
    assert all(torch.equal(found[n], found[n + 3]) for n in range(36))


def test_nothing_found():
    assert list(pasted(torch.ones(0, 1, 28, 28), torch.zeros(0, 4), (40, 60), 0.5)) == []
