"""The exported json as others read it: what we wrote is what they see.

pycocotools is tested in test_pseudo_labels.py. datumaro wants older versions of packages that we
pin, and is tested where somebody has installed it (docs/refinement.md says how).
"""

from __future__ import annotations

import json
from importlib.metadata import distributions

import cv2
import numpy as np
import pytest
from torchvision.datasets import CocoDetection

from lib.evaluation.pseudo_labels import SEGMENTATIONS, to_coco_annotations
from lib.proposals import rle
from tests.blobs import SIZE, blob

NAMES = ["a.png", "b.png", "c.png"]


# (image id, category id, score, mask); image 7 has none.
WANTED = [
    (5, 9, 0.9, blob(20, 20, 15, 9, hole=True)),
    (6, 4, 0.8, blob(30, 18, 20, 12)),
    (5, 4, 0.5, blob(45, 15, 8, 6) | blob(48, 32, 6, 4)),
]


@pytest.fixture(params=SEGMENTATIONS)
def exported(request, tmp_path):
    """A folder with images and labels.json."""
    dataset = {
        "images": [
            {"id": 5 + n, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for n, name in enumerate(NAMES)
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    }
    results = [
        {"image_id": i, "category_id": c, "score": s, "segmentation": rle.mask_to_rle(m)}
        for i, c, s, m in WANTED
    ]
    content = to_coco_annotations(results, dataset, segmentation=request.param)
    (tmp_path / "images").mkdir()
    for name in NAMES:
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((*SIZE, 3), np.uint8))
    (tmp_path / "labels.json").write_text(json.dumps(content))
    return tmp_path, request.param


def wanted_of(image_id):
    return [(c, s, m) for i, c, s, m in WANTED if i == image_id]


def test_torchvision(exported):
    folder, _ = exported
    data = CocoDetection(str(folder / "images"), str(folder / "labels.json"))
    assert len(data) == 3
    for index, image_id in enumerate(data.ids):
        _, annotations = data[index]
        assert len(annotations) == len(wanted_of(image_id))
        for annotation, (category, score, mask) in zip(
            annotations, wanted_of(image_id), strict=True
        ):
            assert (annotation["category_id"], annotation["score"]) == (category, score)
            np.testing.assert_array_equal(data.coco.annToMask(annotation), mask)


def test_there_is_one_opencv():
    """Two opencv packages overwrite each other's files; readers like to bring a second."""
    installed = {d.name.lower().replace("_", "-") for d in distributions() if d.name}
    assert len([name for name in installed if name.startswith("opencv-")]) == 1


def test_supervision(exported):
    supervision = pytest.importorskip("supervision", reason="pip install supervision")
    folder, form = exported
    data = supervision.DetectionDataset.from_coco(
        str(folder / "images"), str(folder / "labels.json"), force_masks=True
    )
    assert data.classes == ["cat", "dog"]
    assert len(data) == 3
    seen = {path.rsplit("/", 1)[-1]: found for path, _, found in data}
    for number, name in enumerate(NAMES):
        wanted = wanted_of(5 + number)
        assert len(seen[name]) == len(wanted)
        for index, (category, _, mask) in enumerate(wanted):
            assert data.classes[seen[name].class_id[index]] == {4: "cat", 9: "dog"}[category]
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert seen[name].xyxy[index].tolist() == box
            if form == "polygon":
                # Its rasteriser counts the pixels right of and below an outline as inside.
                grown = cv2.dilate(mask.astype(np.uint8), np.ones((2, 2)), anchor=(1, 1)) > 0
                assert (seen[name].mask[index] | grown == grown).all()
                assert (seen[name].mask[index] & mask == mask).all()
            else:
                np.testing.assert_array_equal(seen[name].mask[index], mask)


def test_datumaro(exported):
    datumaro = pytest.importorskip("datumaro", reason="see docs/refinement.md")
    folder, _ = exported
    (folder / "annotations").mkdir()
    (folder / "labels.json").rename(folder / "annotations" / "instances_train.json")
    data = datumaro.Dataset.import_from(str(folder), "coco_instances")
    items = {item.id: item for item in data}
    assert set(items) == {"a", "b", "c"}
    for number, name in enumerate("abc"):
        found = {}
        for annotation in items[name].annotations:
            if annotation.type is datumaro.AnnotationType.bbox:  # comes beside every mask
                continue
            if annotation.type is datumaro.AnnotationType.mask:
                part = np.asarray(annotation.image, bool)
            else:
                part = rle.rle_to_mask(rle.compressed([list(annotation.points)], SIZE))
            category = {0: 4, 1: 9}[annotation.label]
            key = (category, annotation.attributes["score"])
            found[key] = found.get(key, False) | part
        wanted = {(category, score): mask for category, score, mask in wanted_of(5 + number)}
        assert found.keys() == wanted.keys()
        for key, mask in wanted.items():
            np.testing.assert_array_equal(found[key], mask)
