"""Rating by features against literal sums over cells; what stands out comes first."""

import numpy as np
import pytest

from lib.proposals import features
from lib.proposals.cells import find_cells
from lib.proposals.features import feature_quality, spread
from lib.proposals.generate import generate_proposals
from tests.proposals.test_generate import picture


@pytest.fixture(scope="module")
def cells():
    return find_cells(picture(), 60)


@pytest.fixture(scope="module")
def members(cells):
    chosen = np.random.default_rng(0).random((12, len(cells))) < 0.3
    chosen[0], chosen[1] = False, True
    chosen[0, 5] = chosen[1, :3] = True
    return chosen.astype(np.uint8)


def steps_apart(cells):
    """(N, N) how many borders lie between two cells."""
    count = len(cells)
    apart = np.where(np.eye(count) > 0, 0, 99)
    apart[tuple(cells.pairs.T)] = apart[tuple(cells.pairs[:, ::-1].T)] = 1
    for k in range(count):
        apart = np.minimum(apart, apart[:, k, None] + apart[None, k])
    return apart


def test_surroundings_against_pairs(cells, members):
    shares = (cells.areas / cells.areas.sum()).astype(np.float32)
    values = np.random.default_rng(1).normal(size=len(cells)).astype(np.float32)
    apart = steps_apart(cells)
    expected = []
    for mask in members.astype(bool):
        weights = np.outer(shares * mask, shares * ~mask) * (apart <= 3)
        total = weights.sum()
        expected.append((weights @ values).sum() / total if total else 0)
    got = features._surroundings(cells, members, shares, values)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_surroundings_of_all_the_image(cells):
    shares = (cells.areas / cells.areas.sum()).astype(np.float32)
    whole = np.ones((1, len(cells)), np.uint8)
    got = features._surroundings(cells, whole, shares, np.full(len(cells), 3, np.float32))
    assert got.tolist() == [0]


def test_cell_means_against_pixels(cells):
    height, width = cells.labels.shape
    maps = np.random.default_rng(2).normal(size=(3, 5, 7)).astype(np.float32)
    y = ((np.arange(height) + 0.5) * 5 / height).astype(int)
    x = ((np.arange(width) + 0.5) * 7 / width).astype(int)
    pixels = maps[:, y][:, :, x]
    expected = [pixels[:, cells.labels == n].mean(axis=1) for n in range(len(cells))]
    np.testing.assert_allclose(features._cell_means(cells, maps), expected, rtol=1e-4, atol=1e-5)


def test_quality_is_contrast_variety_and_colour(cells, members):
    rng = np.random.default_rng(3)
    fine, deep = rng.normal(size=(4, 9, 11)), rng.normal(size=(6, 5, 7))
    maps = [fine.astype(np.float32), deep.astype(np.float32)]
    shares = cells.areas / cells.areas.sum()

    def standard(values):
        values = values - shares @ values
        return values / np.sqrt((shares[:, None] * values**2).sum())

    far = np.linalg.norm(deep - deep.mean(axis=(1, 2), keepdims=True), axis=0)[None]
    far = standard(features._cell_means(cells, far.astype(np.float32)))[:, 0]
    middle = standard(features._cell_means(cells, maps[0]))
    colour = standard(cells.colour)
    apart = steps_apart(cells)
    expected = []
    for mask in members.astype(bool):
        part = shares * mask / shares[mask].sum()
        around = np.outer(shares * mask, shares * ~mask) * (apart <= 3)
        contrast = part @ far - (around @ far).sum() / max(around.sum(), 1e-9)
        variety = np.sqrt(part @ ((middle - part @ middle) ** 2).sum(axis=1))
        a, b = cells.pairs.T
        cut = mask[a] != mask[b]
        steps = np.linalg.norm(colour[a] - colour[b], axis=1)[cut]
        border = np.average(steps, weights=cells.lengths[cut]) if cut.any() else 0
        expected.append(contrast + variety + border)
    chosen = [k for k, mask in enumerate(members) if not mask.all()]
    got = feature_quality(cells, members, maps)
    np.testing.assert_allclose(got[chosen], np.array(expected)[chosen], rtol=2e-3, atol=1e-3)
    assert np.isfinite(got).all()


def test_spread_by_hand():
    """The second mask repeats the first, the third is elsewhere."""
    cells = find_cells(picture(20, 20), 4)
    count = len(cells)
    members = np.zeros((3, count), np.uint8)
    members[:2, : count - 1] = 1
    members[2, count - 1] = 1
    assert spread(cells, members, np.array([1.0, 0.99, 0.95])).tolist() == [0, 2, 1]
    assert spread(cells, members, np.array([1.0, 0.99, 0.9])).tolist() == [0, 1, 2]
    assert spread(cells, members[:1], np.array([1.0])).tolist() == [0]


def test_of_two_equal_objects_the_one_that_the_features_know_is_better():
    image = np.full((80, 160, 3), (90, 100, 110), np.uint8)
    image[25:55, 20:50] = image[25:55, 105:135] = (190, 80, 60)
    cells = find_cells(image, 1000)
    assert cells.boxes[1:, 0].tolist() == [20, 105]
    for known, column in enumerate((3, 12)):
        deep = np.zeros((3, 8, 16), np.float32)
        deep[1, 3:5, column] = 9
        quality = feature_quality(cells, np.eye(3, dtype=np.uint8), [deep, deep])
        assert quality.argmax() == 1 + known


def test_features_are_those_of_the_shrunken_image_and_change_the_order_alone():
    seen = []

    def find_features(image):
        seen.append(image.shape)
        return [np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32)]

    options = {"max_proposals": 10**6, "long_side": 60, "max_iou": 1.0}
    plain = generate_proposals(picture(), **options).masks()
    rated = generate_proposals(picture(), **options, find_features=find_features).masks()
    assert seen == [(42, 60, 3)]
    assert {mask.tobytes() for mask in plain} == {mask.tobytes() for mask in rated}
    assert (plain != rated).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (60, 40)])
def test_features_without_detail(size):
    image = np.full((*size, 3), 90, np.uint8)
    regions = generate_proposals(image, 5, find_features=lambda image: [np.ones((2, 1, 1))])
    assert regions.num_proposals == 1 and regions.masks().all()
