from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.slow_twins import pairwise_overlaps
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.proposals.overlaps import intersections, overlaps, overlaps_with_masks
from lib.proposals.regions import encode
from tests.proposals.cases import any_masks

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "heads").glob("heads_*.npz"))
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def of_masks(masks, device="cpu"):
    regions = encode(masks)
    membership, areas = torch.from_numpy(regions.membership), torch.from_numpy(regions.areas)
    iou, containment = overlaps(membership.to(device), areas.to(device))
    assert iou.dtype == containment.dtype == torch.float32
    assert iou.device.type == containment.device.type == device
    return iou.cpu().numpy(), containment.cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
def test_by_hand(device):
    masks = np.zeros((4, 2, 5), bool)
    masks[0, 0, :4] = True
    masks[1, 0, :2] = True  # inside 0
    masks[2, :, 1] = True  # one pixel in 0 and 1; mask 3 is empty
    iou, containment = of_masks(masks, device)
    third = np.float32(1 / 3)
    expected_iou = [[1, 0.5, 0.2, 0], [0.5, 1, third, 0], [0.2, third, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(iou, np.array(expected_iou, np.float32))
    # [i, j]: how much of j lies in i. All of mask 1 lies in 0, half of 0 lies in 1.
    expected = [[1, 1, 0.5, 0], [0.5, 1, 0.5, 0], [0.25, 0.5, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(containment, np.array(expected, np.float32))


@settings(max_examples=60, deadline=None)
@given(any_masks())
def test_against_slow_twin(masks):
    for got, expected in zip(of_masks(masks), pairwise_overlaps(masks), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("count", [256, 257, 512, 600])
@pytest.mark.parametrize("device", DEVICES)
def test_products_by_blocks(count, device):
    """Of many proposals the product is made by blocks; it stays exact and symmetric."""
    rng = np.random.default_rng(count)
    membership, areas = rng.random((count, 50)) < 0.3, rng.integers(1, 9000, 50)
    weighted = (membership * areas).astype(np.int64)
    tensors = (torch.from_numpy(membership).to(device), torch.from_numpy(areas).to(device))
    shared = intersections(*tensors).cpu().numpy()
    np.testing.assert_array_equal(shared, weighted @ membership.T.astype(np.int64))
    iou, containment = (part.cpu().numpy() for part in overlaps(*tensors))
    np.testing.assert_array_equal(iou, iou.T)
    pixels = weighted.sum(axis=1)
    np.testing.assert_allclose(containment, shared / pixels, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_permutation(seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((10, 12, 7)) < 0.4
    order = rng.permutation(10)
    for got, permuted in zip(of_masks(masks), of_masks(masks[order]), strict=True):
        np.testing.assert_array_equal(permuted, got[np.ix_(order, order)])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden(path):
    golden = np.load(path)
    height, width = int(golden["height"]), int(golden["width"])
    packed = np.unpackbits(golden["masks"], axis=1, count=height * width)
    iou, containment = of_masks(packed.reshape(-1, height, width).astype(bool))
    np.testing.assert_allclose(iou, golden["iou"], rtol=1e-6)
    np.testing.assert_allclose(containment, golden["containment"], rtol=1e-6)


def test_golden_files_are_there():
    assert len(GOLDEN) >= 5


@pytest.mark.parametrize("device", DEVICES)
def test_exact_beyond_float32(device):
    """Areas over 2^24, that float32 would round."""
    membership = torch.tensor([[True, True, False], [True, True, True]], device=device)
    areas = torch.tensor([(1 << 24) + 1, 2, 5], device=device)
    shared = intersections(membership, areas)
    assert shared.dtype == torch.float64
    assert shared.tolist() == [[16777219, 16777219], [16777219, 16777224]]
    assert intersections(membership, torch.tensor([3, 2, 5], device=device)).dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_exact_up_to_the_last_area_of_float32(device):
    # The two areas together are beyond 2^24 and odd: their sum would be rounded.
    membership = torch.tensor([[True, True], [False, True]], device=device)
    areas = torch.tensor([1, (1 << 24) - 2], device=device)
    assert intersections(membership, areas).dtype == torch.float32
    iou, containment = overlaps(membership, areas)
    fraction = 1 - 2.0**-24  # the float32 nearest to (2^24 - 2) / (2^24 - 1)
    assert iou.tolist() == [[1, fraction], [fraction, 1]]
    assert containment.tolist() == [[1, 1], [fraction, 1]]


@pytest.mark.parametrize("device", DEVICES)
def test_exact_under_reduced_precision_and_autocast(device):
    rng = np.random.default_rng(0)
    masks = rng.random((40, 61, 67)) < 0.5
    expected = of_masks(masks)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast(device, dtype=torch.bfloat16):
            got = of_masks(masks, device)
        # Not every processor rounds: ask for the type too.
        few = torch.ones((1, 1), dtype=torch.bool, device=device)
        shared = intersections(few, torch.tensor([3], device=device))
        assert shared.dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_exact_under_the_newer_settings_of_precision(device):
    few = torch.ones((1, 1), dtype=torch.bool, device=device)
    products = (torch.backends.cuda if device == "cuda" else torch.backends.mkldnn).matmul
    for place in (products, torch.backends):
        place.fp32_precision = "tf32"
        try:
            shared = intersections(few, torch.tensor([3], device=device))
        finally:
            place.fp32_precision = "none"
        assert shared.dtype == torch.float64
        assert intersections(few, torch.tensor([3], device=device)).dtype == torch.float32


def test_overlaps_with_other_masks():
    rng = np.random.default_rng(1)
    masks, others = rng.random((6, 9, 14)) < 0.5, rng.random((3, 9, 14)) < 0.5
    others[2] = False
    got = overlaps_with_masks(encode(masks), others)
    expected = [[(m & o).sum() / (m | o).sum() for o in others] for m in masks]
    np.testing.assert_allclose(got, expected)
    assert overlaps_with_masks(encode(masks), others[:0]).shape == (6, 0)
    assert overlaps_with_masks(encode(masks[:0]), others).shape == (0, 3)
    with pytest.raises(ValueError, match="14x9.*|9x14"):
        overlaps_with_masks(encode(masks), others.transpose(0, 2, 1))
