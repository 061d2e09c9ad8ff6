from __future__ import annotations

import numpy as np
import pytest

from lib.refine.mosaics import compose, draw_mosaics
from lib.structures import ImageRecord, ReadInstances


def labels(*scored, category=1):
    return [{"score": score, "category_id": category} for score in scored]


def part(number, size=(30, 40), box=(10, 15, 20, 30)):
    """A grey image with an object of its own brightness in the box (top, left, bottom, right)."""
    top, left, bottom, right = box
    mask = np.zeros((1, *size), np.uint8)
    mask[0, top:bottom, left:right] = 1
    image = np.full((*size, 3), 10, np.uint8)
    image[mask[0] > 0] = 100 + 20 * number
    record = ImageRecord(number, f"{number}.jpg", *size, np.ones(3, np.float32))
    return ReadInstances(record, image, mask, np.array([number]))


def test_mosaics_are_of_the_surer_half_of_the_images_with_one_label():
    instances = {n: labels(n / 10) for n in range(8)}
    instances |= {8: labels(0.95, 0.9), 9: labels(0.99), 10: []}
    instances[9][0]["box_only"] = True
    mosaics = draw_mosaics(instances, 40, seed=1)
    assert len(mosaics) == 40
    assert {index for mosaic in mosaics for index in mosaic.parts} == {4, 5, 6, 7}
    assert {len(mosaic.parts) for mosaic in mosaics} == {2, 3, 4}
    assert all(len(set(mosaic.parts)) == len(mosaic.parts) for mosaic in mosaics)
    assert draw_mosaics(instances, 40, seed=1) == mosaics
    assert draw_mosaics(instances, 40, seed=2) != mosaics


def test_most_are_of_one_class():
    instances = {n: labels(0.5, category=n % 2) for n in range(40)}
    mosaics = draw_mosaics(instances, 300, seed=0)
    same = [len({part % 2 for part in mosaic.parts}) == 1 for mosaic in mosaics]
    assert 0.7 < np.mean(same) < 0.9  # some of the others too, by chance


def test_corrected_labels_are_sure_and_one_image_is_no_mosaic():
    corrected = {n: [{"category_id": 1}] for n in (3, 4)}
    mosaics = draw_mosaics({**{n: labels(0.9) for n in (1, 2)}, **corrected}, 9, seed=0)
    assert {index for mosaic in mosaics for index in mosaic.parts} == {3, 4}
    assert draw_mosaics({1: labels(0.9), 2: labels(0.9, 0.8)}, 9, seed=0) == []


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_object_is_shown_with_its_mask(count):
    for seed in range(10):
        made = compose([part(n) for n in range(count)], seed)
        assert made.image.shape == (30, 40, 3)
        assert made.masks.shape == (count, 30, 40)
        assert made.class_idx.tolist() == list(range(count))
        assert made.record.file_name == "0.jpg"
        assert made.masks.sum(axis=0).max() == 1
        for number, mask in enumerate(made.masks):
            inside = mask > 0
            assert np.median(made.image[inside]) == 100 + 20 * number
            # Cells divide the sides near the middle: no object shrinks below a sixth of its area.
            assert inside.sum() > 150 / 6
        outside = made.image[made.masks.sum(axis=0) == 0]
        assert np.median(outside) == 10


def test_an_object_at_the_border_stays_in_the_picture():
    """The window moves along: the image is much wider than a cell of its height."""
    parts = [part(n, (30, 90), (10, 80, 20, 90)) for n in range(2)]
    for seed in range(10):
        made = compose(parts, seed)
        assert (made.masks.sum(axis=(1, 2)) > 50).all()


def test_images_of_other_sizes_and_an_empty_mask():
    parts = [part(0), part(1, (80, 20), (0, 0, 0, 0)), part(2, (7, 9), (1, 1, 6, 8))]
    made = compose(parts, seed=0)
    assert made.image.shape == (30, 40, 3)
    assert made.masks.any(axis=(1, 2)).tolist() == [True, False, True]
    assert (made.image >= 10).all()  # no part of the picture stays empty
