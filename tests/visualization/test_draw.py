from __future__ import annotations

import cv2
import numpy as np
import pytest

from lib.structures import Clusters, Regions
from lib.visualization.draw import (
    color_of,
    draw_clusters,
    draw_instances,
    draw_proposals,
    enlarge,
)
from lib.visualization.panels import contact_sheet, save_png, side_by_side


def plain(height, width, value=120):
    return np.full((height, width, 3), value, np.uint8)


def block(height, width, top, left, size):
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def changed(before, after):
    return (before != after).any(axis=2)


def test_colors_are_stable_and_apart():
    colors = np.array([color_of(i) for i in range(80)], dtype=float)
    assert color_of(0) == color_of(0) == (255, 38, 38)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 8
    assert distances[:10, :10].min() > 60
    assert distances[:5, :5].min() > 150


def test_instances_are_tinted_where_they_are():
    image = plain(600, 700)
    masks = np.stack([block(600, 700, 100, 100, 120), block(600, 700, 300, 400, 200)])
    drawn = draw_instances(image, masks, [0, 3], [0.9, 0.5], ["cat", "dog", "cow", "fox"])
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 120).all()
    inside = drawn[400, 500]
    assert tuple(inside) == tuple(round(120 * 0.55 + 0.45 * channel) for channel in color_of(3))
    touched = changed(image, drawn)
    near = cv2.dilate(masks.any(axis=0).astype(np.uint8), np.ones((9, 9))).astype(bool)
    plates = touched & ~near
    # Only the two captions, right above their instances, are outside.
    rows, columns = np.nonzero(plates)
    assert len(rows)
    assert ((rows < 100) | ((rows > 260) & (rows < 300))).all()


@pytest.mark.parametrize("value", [0, 255])
def test_outline_stands_out_on_dark_and_on_light(value):
    image = plain(600, 600, value)
    mask = block(600, 600, 200, 200, 200)
    drawn = draw_instances(image, mask[None], [1])
    edge = drawn[300, 194:206].astype(int)  # across the left side
    color = np.array(color_of(1))
    assert np.abs(edge - color).sum(axis=1).min() < 60  # the coloured line
    assert edge.sum(axis=1).min() < 180  # beside the dark one


def test_small_images_are_enlarged_and_captions_fit():
    image = plain(96, 128)
    masks = np.stack([block(96, 128, 0, 0, 6), block(96, 128, 90, 122, 6)])  # in two corners
    drawn = draw_instances(image, masks, [0, 1], [0.25, 0.75], ["a rather long name", "b"])
    assert drawn.shape == (96 * 4, 128 * 4, 3)
    assert changed(plain(384, 512), drawn)[:, 40:200].any()


def test_color_by_instance():
    image = plain(600, 600)
    masks = np.stack([block(600, 600, 50, 50, 100), block(600, 600, 300, 300, 100)])
    by_class = draw_instances(image, masks, [2, 2])
    by_instance = draw_instances(image, masks, [2, 2], color_by="instance")
    assert (by_class[100, 100] == by_class[350, 350]).all()
    assert (by_instance[100, 100] != by_instance[350, 350]).any()


def test_small_instances_lie_on_large_ones():
    image = plain(600, 600)
    masks = np.stack([block(600, 600, 200, 200, 50), block(600, 600, 100, 100, 400)])
    drawn = draw_instances(image, masks, [0, 1])
    below = np.round(120 * 0.55 + 0.45 * np.array(color_of(1)))
    np.testing.assert_array_equal(drawn[400, 400], below)
    np.testing.assert_array_equal(
        drawn[230, 230], np.round(below * 0.55 + 0.45 * np.array(color_of(0)))
    )


def test_nothing_to_draw():
    image = plain(600, 600)
    none = np.zeros((0, 600, 600), dtype=bool)
    np.testing.assert_array_equal(draw_instances(image, none, [], []), image)
    empty = np.zeros((1, 600, 600), dtype=bool)
    np.testing.assert_array_equal(draw_instances(image, empty, [0], [0.5]), image)


def test_a_hundred_captions_stay_inside():
    image = plain(520, 520)
    masks = np.stack([block(520, 520, 5 * i, 5 * (99 - i), 20) for i in range(100)])
    draw_instances(image, masks, [i % 7 for i in range(100)], [1.0] * 100)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="masks are 4x5"):
        draw_instances(plain(5, 4), np.zeros((1, 4, 5), dtype=bool), [0])
    with pytest.raises(ValueError, match="1 masks with 2 labels"):
        draw_instances(plain(5, 4), np.zeros((1, 5, 4), dtype=bool), [0, 1])
    with pytest.raises(ValueError, match=r"expected \(K, H, W\)"):
        draw_instances(plain(5, 4), np.zeros((5, 4), dtype=bool), [0])


def two_halves(height=300, width=600):
    labels = np.zeros((height, width), np.int32)
    labels[:, width // 2 :] = 1
    membership = np.array([[True, False], [False, True], [False, True]])
    return Regions(labels, membership, np.bincount(labels.ravel()))


def test_proposals_are_outlined():
    regions = two_halves()
    drawn = changed(plain(300, 600), draw_proposals(plain(300, 600), regions, [0]))
    assert drawn[:, :10].any() and drawn[:, 290:305].all(axis=0).any()
    assert not drawn[:, 310:].any()
    assert not drawn[50:250, 50:250].any()


def test_clusters_are_tinted_by_class():
    regions = two_halves()
    clusters = Clusters(number=np.array([2, 1, 1]), column=np.array([0, 4, 4]))
    drawn = draw_clusters(plain(300, 600), regions, clusters, ["a", "b", "c", "d"])
    assert changed(plain(300, 600), drawn)[:, 310:].mean() > 0.9
    assert not changed(plain(300, 600), drawn)[:, :280].any()  # the background cluster


def test_panels_and_sheets():
    wide, high = plain(100, 200, 10), plain(200, 100, 20)
    both = side_by_side([("left", wide), ("right", high)])
    assert both.shape == (228, 400 + 4 + 100, 3)
    assert (both[100, 200] == 10).all() and (both[100, 450] == 20).all()
    sheet = contact_sheet([wide, high, wide], columns=2)
    assert sheet.shape == (200 + 6 + 100, 200 + 6 + 100, 3)
    assert contact_sheet([wide, high], columns=2, tile_width=50).shape == (100, 106, 3)


def test_png_keeps_the_colors(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    path = tmp_path / "deep" / "picture.png"
    save_png(path, image)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)


def test_enlarging_never_shrinks_nor_aliases():
    image = plain(10, 700)
    assert enlarge(image).shape == image.shape
    assert enlarge(image) is not image
    assert enlarge(plain(10, 511)).shape == (20, 1022, 3)
