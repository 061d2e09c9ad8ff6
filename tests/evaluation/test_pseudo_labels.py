from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from lib.config import PseudoLabelConfig
from lib.data.coco import read_coco
from lib.evaluation.pseudo_labels import (
    SEGMENTATIONS,
    count_table,
    select,
    summarise,
    to_coco_annotations,
)
from lib.proposals import rle
from lib.proposals.regions import encode


def square(x, y, side):
    mask = np.zeros((12, 16), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


DATASET = {
    "images": [
        {"id": i, "file_name": f"{i}.jpg", "height": 12, "width": 16, "license": 1}
        for i in (4, 2, 8)
    ],
    "categories": [{"id": 11, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}],
    "annotations": "never looked at",
}
MASKS = [square(0, 0, 5), square(3, 2, 8), square(10, 1, 4), square(1, 1, 2)]
RESULTS = [
    {"image_id": i, "category_id": c, "score": s, "segmentation": rle.mask_to_rle(m)}
    for (i, c, s), m in zip(
        [(4, 11, 0.4), (4, 7, 0.3), (2, 7, 0.9), (2, 7, 0.29999)], MASKS, strict=True
    )
]


@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_round_trip_through_pycocotools(tmp_path, segmentation):
    content = to_coco_annotations(RESULTS, DATASET, segmentation=segmentation)
    path = tmp_path / "pseudo.json"
    path.write_text(json.dumps(content))
    coco = COCO(str(path))
    assert sorted(coco.getImgIds()) == [2, 4, 8]
    assert coco.loadImgs(8)[0]["license"] == 1
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == {"cat", "dog"}
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3]
    order = [2, 0, 1]  # best first; 0.3 itself stays, what is below goes
    for annotation, source in zip(content["annotations"], order, strict=True):
        want, mask = RESULTS[source], MASKS[source]
        assert annotation["score"] == want["score"]
        assert (annotation["image_id"], annotation["category_id"]) == (
            want["image_id"],
            want["category_id"],
        )
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        assert annotation["bbox"] == [columns.min(), rows.min(), *np.ptp([columns, rows], 1) + 1]
        assert annotation["iscrowd"] == 0


def test_forms_of_the_segmentation():
    compressed = to_coco_annotations(RESULTS, DATASET)["annotations"][0]["segmentation"]
    assert isinstance(compressed["counts"], str)
    plain = to_coco_annotations(RESULTS, DATASET, segmentation="uncompressed")
    counts = plain["annotations"][0]["segmentation"]["counts"]
    assert all(type(n) is int for n in counts)
    np.testing.assert_array_equal(
        coco_mask.decode(coco_mask.frPyObjects({"size": [12, 16], "counts": counts}, 12, 16)),
        MASKS[2],
    )
    with pytest.raises(ValueError, match="polygons"):
        to_coco_annotations(RESULTS, DATASET, segmentation="polygons")


def test_everything_is_plain_json():
    content = to_coco_annotations(RESULTS, DATASET)
    for annotation in content["annotations"]:
        assert {key: type(annotation[key]) for key in ("id", "area", "iscrowd", "score")} == {
            "id": int,
            "area": int,
            "iscrowd": int,
            "score": float,
        }
        assert all(type(v) is float for v in annotation["bbox"])


def test_whole_numbers_become_int():
    dataset = {
        **DATASET,
        "images": [{**i, "id": float(i["id"])} for i in DATASET["images"]],
        "categories": [{**c, "id": float(c["id"])} for c in DATASET["categories"]],
    }
    results = [{**r, "image_id": float(r["image_id"])} for r in RESULTS]
    content = to_coco_annotations(results, read_coco({**dataset, "annotations": []}))
    plain = to_coco_annotations(RESULTS, DATASET)
    for part in ("images", "annotations", "categories"):
        assert json.dumps(content[part]) == json.dumps(plain[part])


def test_polygons_describe_what_they_draw(caplog):
    """Simplified and without tiny parts, area and box are still those of the segmentation."""
    mask = np.zeros((12, 16), bool)
    mask[2:10, 2:12] = np.tri(8, 10, 2, dtype=bool)
    mask[11, 15] = True
    mask[6, 3] = False
    results = [{**RESULTS[0], "segmentation": rle.mask_to_rle(mask)}]
    with caplog.at_level("INFO"):
        (annotation,) = to_coco_annotations(
            results, DATASET, segmentation="polygon", tolerance=1.0, min_part=0.03
        )["annotations"]
    assert "1 parts dropped and 1 holes filled that are smaller than 0.03" in caplog.text
    drawn = rle.compressed(annotation["segmentation"], (12, 16))
    assert annotation["area"] == rle.area(drawn)
    assert annotation["bbox"] == rle.tight_box(drawn)
    assert type(annotation["area"]) is int
    assert all(type(v) is float for polygon in annotation["segmentation"] for v in polygon)


def test_a_mask_without_a_pixel_is_no_annotation():
    nothing = {**RESULTS[0], "segmentation": rle.mask_to_rle(np.zeros((12, 16), bool))}
    content = to_coco_annotations([nothing, *RESULTS], DATASET)
    assert content == to_coco_annotations(RESULTS, DATASET)


def test_counts_per_image_and_class():
    assert count_table(to_coco_annotations(RESULTS, DATASET)) == [
        ["image_id", "file_name", "cat", "dog", "total"],
        [4, "4.jpg", 1, 1, 2],
        [2, "2.jpg", 0, 1, 1],
        [8, "8.jpg", 0, 0, 0],
    ]


def test_the_threshold_is_an_option():
    assert (
        len(to_coco_annotations(RESULTS, DATASET, PseudoLabelConfig(score_thresh=0))["annotations"])
        == 4
    )


def test_nothing_left_is_said(caplog):
    content = to_coco_annotations(RESULTS, DATASET, PseudoLabelConfig(score_thresh=0.95))
    assert content["annotations"] == []
    assert len(content["images"]) == 3
    assert "none of 4 detections reaches the score 0.95 (the best has 0.9)" in caplog.text
    assert summarise(content) == "0 instances on 0 of 3 images"
    caplog.clear()
    to_coco_annotations([], DATASET)
    assert "there are no detections" in caplog.text


def test_detections_of_another_set_are_refused():
    with pytest.raises(ValueError, match="image 99"):
        to_coco_annotations([{**RESULTS[0], "image_id": 99}], DATASET)


def test_summary():
    assert (
        summarise(to_coco_annotations(RESULTS, DATASET))
        == "3 instances on 2 of 3 images (cat 1, dog 2)"
    )


ADAPTIVE = PseudoLabelConfig(select="adaptive")
LABELLED = {
    **DATASET,
    "annotations": [
        {"image_id": 4, "category_id": 11, "iscrowd": 0},
        {"image_id": 2, "category_id": 7, "iscrowd": 0},
        {"image_id": 8, "category_id": 7, "iscrowd": 1},
    ],
}


def found(*scored, image_id=4, category_id=11):
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "score": score,
            "segmentation": rle.mask_to_rle(mask),
        }
        for score, mask in scored
    ]


def scores(results, how=ADAPTIVE):
    return [result["score"] for result in select(results, LABELLED, how)]


def test_the_best_of_every_image_and_label_stays_whatever_its_score():
    apart = [square(0, 0, 4), square(5, 0, 4), square(10, 0, 4), square(0, 6, 4)]
    low = found((0.11, apart[0]), (0.1, apart[1]), (0.25, apart[2]), (0.09, apart[3]))
    assert scores(low) == [0.11, 0.1, 0.25]  # 0.4 of the best is enough; in their order
    assert scores(low, PseudoLabelConfig(select="adaptive", relative_thresh=0.5)) == [0.25]
    assert scores(found((0.0, apart[0]), (0.0, apart[1]))) == [0.0]
    other = found((0.9, apart[0]), image_id=2, category_id=7)
    assert scores(low + other) == [0.11, 0.1, 0.25, 0.9]  # images do not measure each other


def test_only_labels_of_the_image_count():
    square_ = square(0, 0, 4)
    assert scores(found((0.9, square_), category_id=7)) == []
    assert scores(found((0.9, square_), image_id=8, category_id=7)) == []  # a crowd is no label
    with pytest.raises(ValueError, match="no image-level labels.*--select score"):
        select([], {**DATASET, "annotations": []}, ADAPTIVE)


def test_what_joins_a_better_one_with_something_else_is_dropped():
    """But what lies in a better one stays: it may be one of several objects."""
    whole, part = square(2, 2, 8), square(3, 3, 4)
    assert scores(found((0.9, part), (0.8, whole))) == [0.9]
    assert scores(found((0.8, part), (0.9, whole))) == [0.8, 0.9]
    aside = square(8, 3, 4)  # half of it lies in the whole
    assert scores(found((0.9, aside), (0.8, whole))) == [0.9, 0.8]
    # What is dropped does not drop others: the third holds the second alone.
    third = whole.copy()
    third[3:7, 3:7] = False
    third[:, 0:3] = True
    assert scores(found((0.9, part), (0.8, whole), (0.7, third))) == [0.9, 0.7]


def test_a_mask_without_a_pixel_is_not_the_best():
    nothing, something = np.zeros((12, 16), bool), square(0, 0, 4)
    assert scores(found((0.9, nothing), (0.1, something))) == [0.1]


def test_masks_become_proposals_where_these_fit(caplog):
    caplog.set_level("INFO")
    near, far = square(2, 2, 5), square(9, 0, 3)
    results = found((0.9, near), (0.8, far)) + found((0.7, near), image_id=2, category_id=7)
    images = {i["id"]: i["file_name"] for i in DATASET["images"]}
    proposals = {images[4]: [square(2, 2, 6), square(0, 0, 9)], images[2]: [square(0, 0, 12)]}
    how = PseudoLabelConfig(snap_iou=0.69)  # 25 of 36 pixels

    def regions_of(name):
        return encode(np.array(proposals[name]))

    labels = to_coco_annotations(results, DATASET, how, regions_of=regions_of)["annotations"]
    masks = [rle.rle_to_mask(a["segmentation"]) for a in labels]
    for mask, expected in zip(masks, (square(2, 2, 6), far, near), strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert labels[0]["area"] == 36
    assert labels[0]["bbox"] == [2, 2, 6, 6]
    assert "1 of 3 masks are replaced by the proposal" in caplog.text


def test_the_selection_is_told_in_the_file(caplog):
    adaptive = to_coco_annotations(RESULTS, LABELLED, ADAPTIVE)
    assert [a["score"] for a in adaptive["annotations"]] == [0.9, 0.4]
    assert adaptive["info"]["selection"]["select"] == "adaptive"
    assert to_coco_annotations(RESULTS, DATASET)["info"]["selection"]["score_thresh"] == 0.3
    to_coco_annotations(found((0.9, square(0, 0, 4)), category_id=7), LABELLED, ADAPTIVE)
    assert "none of 1 detections is of a label of its image (the best has 0.9)" in caplog.text
