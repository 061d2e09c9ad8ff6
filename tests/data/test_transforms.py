import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lib.data.transforms import (
    FLIPS,
    mirror_boxes,
    mirror_image,
    mirror_roi_masks,
    normalise,
    resize_long_side,
)

flips = st.sampled_from(FLIPS)


def literal_resize(image, factor):
    """Bilinear interpolation pixel by pixel, in float, truncated."""
    height, width = image.shape[:2]
    out = np.zeros((round(height * factor), round(width * factor), 3), np.uint8)
    for i, j in np.ndindex(out.shape[:2]):
        y = min(max((i + 0.5) / factor - 0.5, 0), height - 1)
        x = min(max((j + 0.5) / factor - 0.5, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        above = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
        below = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
        out[i, j] = (above * (1 - y + top) + below * (y - top) + 1e-4).astype(np.uint8)
    return out


def test_interpolated_values_are_truncated():
    image = np.repeat(np.array([[[0], [3]]], np.uint8), 3, axis=2)
    resized, factor = resize_long_side(image, 4)
    assert factor == 2.0
    # 0, 0.75, 2.25, 3: rounding would give 0 1 2 3.
    assert resized[..., 0].tolist() == [[0, 0, 2, 3]] * 2


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((10, 20), 40, (20, 40)),
        ((20, 10), 5, (5, 2)),
        ((7, 7), 7, (7, 7)),
        ((13, 17), 23, (18, 23)),
    ],
)
def test_resize_is_like_its_slow_twin(size, long_side, expected):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    resized, factor = resize_long_side(image, long_side)
    assert factor == long_side / max(size)
    assert resized.shape == (*expected, 3) and resized.dtype == np.uint8
    difference = resized.astype(int) - literal_resize(image, factor)
    # Float32 against float64: a value next to a whole number may fall to the other side.
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


def test_resize_does_not_round_up():
    image = np.random.default_rng(2).integers(0, 256, (31, 47, 3), np.uint8)
    resized, _ = resize_long_side(image, 100)
    assert resized.mean() < image.mean() - 0.25


def test_the_same_size_changes_nothing():
    image = np.random.default_rng(3).integers(0, 256, (5, 9, 3), np.uint8)
    resized, factor = resize_long_side(image, 9)
    assert factor == 1.0
    assert np.array_equal(resized, image)


@pytest.mark.parametrize(("size", "expected"), [((1, 500), (1, 60)), ((500, 2), (60, 1))])
def test_a_sliver_keeps_a_pixel(size, expected):
    image = np.full((*size, 3), 9, np.uint8)
    resized, factor = resize_long_side(image, 60)
    assert resized.shape == (*expected, 3)
    assert (resized == 9).all()
    assert factor == 0.12


def test_normalise_hand_values():
    image = np.array([[[0, 255, 51], [255, 0, 102]]], np.uint8)
    out = normalise(image)
    assert out.shape == (3, 1, 2) and out.dtype == torch.float32 and out.is_contiguous()
    expected = [
        [(0 - 0.485) / 0.229, (1 - 0.485) / 0.229],
        [(1 - 0.456) / 0.224, (0 - 0.456) / 0.224],
        [(0.2 - 0.406) / 0.225, (0.4 - 0.406) / 0.225],
    ]
    assert torch.allclose(out[:, 0], torch.tensor(expected), atol=1e-6)


def test_normalise_is_torchvisions():
    from torchvision.transforms import functional

    image = np.random.default_rng(4).integers(0, 256, (8, 9, 3), np.uint8)
    twin = functional.normalize(
        functional.to_tensor(image), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert torch.equal(normalise(image), twin)
    assert torch.equal(normalise(image[:, ::-1]), twin.flip(2))


def test_mirrored_boxes_hand_table():
    boxes = np.array([[1, 2, 5, 3], [0, 0, 9, 5]], np.float32)
    size = (6, 10)
    assert mirror_boxes(boxes, size, "none").tolist() == boxes.tolist()
    assert mirror_boxes(boxes, size, "horizontal").tolist() == [[4, 2, 8, 3], [0, 0, 9, 5]]
    assert mirror_boxes(boxes, size, "vertical").tolist() == [[1, 2, 5, 3], [0, 0, 9, 5]]
    assert mirror_boxes(boxes + 0.5, size, "vertical").tolist()[0] == [1.5, 1.5, 5.5, 2.5]
    assert mirror_boxes(boxes, (8, 10), "both").tolist()[0] == [4, 4, 8, 5]
    tensor = mirror_boxes(torch.tensor(boxes), size, "horizontal")
    assert tensor.tolist() == [[4, 2, 8, 3], [0, 0, 9, 5]]
    assert boxes.tolist() == [[1, 2, 5, 3], [0, 0, 9, 5]]


def test_mirrored_images_and_masks_hand_table():
    grid = np.array([[1, 2, 3], [4, 5, 6]])
    expected = {
        "none": [[1, 2, 3], [4, 5, 6]],
        "horizontal": [[3, 2, 1], [6, 5, 4]],
        "vertical": [[4, 5, 6], [1, 2, 3]],
        "both": [[6, 5, 4], [3, 2, 1]],
    }
    for flip in FLIPS:
        assert mirror_image(grid, flip).tolist() == expected[flip]
        assert mirror_image(grid[..., None], flip)[..., 0].tolist() == expected[flip]
        assert mirror_roi_masks(np.stack([grid, grid + 6]), flip)[0].tolist() == expected[flip]


@given(
    boxes=hnp.arrays(np.float32, (5, 4), elements=st.integers(0, 20)),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    flip=flips,
)
def test_mirroring_boxes_twice_gives_them_back(boxes, height, width, flip):
    twice = mirror_boxes(mirror_boxes(boxes, (height, width), flip), (height, width), flip)
    assert np.array_equal(twice, boxes)


@given(image=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3)), flip=flips)
def test_mirroring_twice_gives_it_back(image, flip):
    assert np.array_equal(mirror_image(mirror_image(image, flip), flip), image)
    assert np.array_equal(mirror_roi_masks(mirror_roi_masks(image, flip), flip), image)


@given(flip=flips, data=st.data())
def test_a_box_goes_where_its_pixels_go(flip, data):
    # A box (xmin, ymin, xmax, ymax) of pixels is mirrored exactly; only for these inclusive
    # corners is x1' = W - x2 - 1 the mirror image, and the published code uses it for all.
    height, width = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    x1, x2 = sorted(data.draw(st.tuples(*[st.integers(0, width - 1)] * 2)))
    y1, y2 = sorted(data.draw(st.tuples(*[st.integers(0, height - 1)] * 2)))
    mask = np.zeros((height, width), bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    ys, xs = np.nonzero(mirror_image(mask, flip))
    box = mirror_boxes(np.array([[x1, y1, x2, y2]]), (height, width), flip)[0]
    assert box.tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]


def test_unknown_flip():
    for call in (
        lambda: mirror_image(np.zeros((2, 2)), "left"),
        lambda: mirror_boxes(np.zeros((0, 4)), (2, 2), "left"),
        lambda: mirror_roi_masks(np.zeros((0, 7, 7)), "left"),
    ):
        with pytest.raises(ValueError, match="unknown flip 'left'; known: none, horizontal"):
            call()


def test_no_proposals():
    assert mirror_boxes(np.zeros((0, 4), np.float32), (2, 2), "both").shape == (0, 4)
    assert mirror_roi_masks(np.zeros((0, 7, 7), bool), "both").shape == (0, 7, 7)
