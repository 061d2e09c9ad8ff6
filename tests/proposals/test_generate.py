"""The inner loops against literal ones; what generated proposals promise; recall by hand."""

import cv2
import numpy as np
import pytest
import torch

from lib.evaluation.proposal_recall import best_overlaps, recall_table, table_text
from lib.proposals import _merge
from lib.proposals import cells as cells_module
from lib.proposals.cells import find_cells, tree
from lib.proposals.generate import _candidates, generate_proposals
from lib.proposals.overlaps import overlaps
from lib.proposals.regions import encode, mask_areas

WEIGHTS = {
    "border": 0.02,
    "colour": 0.7,
    "texture": 0.3,
    "fill": 0.4,
    "size": 0.3,
    "share": 0.6,
}


def picture(height=70, width=101, seed=0):
    """Coloured ellipses on a noisy ground, some of them overlapping."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(60, 200, 3), np.uint8)
    for _ in range(6):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = tuple(int(a) for a in rng.integers(6, 20, 2))
        colour = [int(c) for c in rng.integers(0, 255, 3)]
        cv2.ellipse(image, centre, axes, int(rng.integers(180)), 0, 360, colour, -1)
    noisy = image + rng.normal(0, 6, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def cells():
    return find_cells(picture(), 60)


def test_cell_borders_against_pixel_loops():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, (6, 9)).astype(np.int32)
    across_x = rng.random((6, 8)).astype(np.float32)
    across_y = rng.random((5, 9)).astype(np.float32)
    expected = {}
    for y in range(6):
        for x in range(9):
            for dy, dx, strength in ((0, 1, across_x), (1, 0, across_y)):
                if y + dy < 6 and x + dx < 9 and labels[y, x] != labels[y + dy, x + dx]:
                    pair = tuple(sorted((int(labels[y, x]), int(labels[y + dy, x + dx]))))
                    expected.setdefault(pair, []).append(strength[y, x])
    pairs, lengths, strengths = _merge.cell_borders(labels, across_x, across_y)
    assert [tuple(p) for p in pairs.tolist()] == list(expected)
    assert lengths.tolist() == [len(v) for v in expected.values()]
    np.testing.assert_allclose(strengths, [sum(v) for v in expected.values()], rtol=1e-5)


def literal_tree(cells, weights):
    """Recomputes every distance from the sets of cells at every step."""
    ends, lengths, strengths = cells.pairs, cells.lengths, cells.strengths
    nodes = {i: [i] for i in range(len(cells))}
    merges = []

    def border(a, b):
        inside = [np.isin(ends, nodes[n]) for n in (a, b)]
        return (inside[0][:, 0] & inside[1][:, 1]) | (inside[1][:, 0] & inside[0][:, 1])

    def mean(values, n):
        return np.average(values[nodes[n]], axis=0, weights=cells.areas[nodes[n]])

    def outline(n):
        return lengths[np.isin(ends, nodes[n]).sum(axis=1) == 1].sum()

    def distance(a, b):
        shared = border(a, b)
        value = weights["border"] * strengths[shared].sum() / lengths[shared].sum()
        for name in ("colour", "texture"):
            values = getattr(cells, name)
            value += weights[name] * 0.5 * np.abs(mean(values, a) - mean(values, b)).sum()
        areas = [cells.areas[nodes[n]].sum() for n in (a, b)]
        total = cells.areas.sum()
        value *= (areas[0] * areas[1] / sum(areas) / total) ** weights["size"]
        value *= 1 - weights["share"] * lengths[shared].sum() / min(outline(a), outline(b))
        box = cells.boxes[nodes[a] + nodes[b]]
        around = (box[:, 2:].max(axis=0) - box[:, :2].min(axis=0) + 1).prod()
        return value + weights["fill"] * (around - sum(areas)) / total

    while len(nodes) > 1:
        known = [(a, b) for a in nodes for b in nodes if a < b and border(a, b).any()]
        a, b = min(known, key=lambda pair: distance(*pair))
        node = len(cells) + len(merges)
        merges.append({a, b})
        nodes[node] = nodes.pop(a) + nodes.pop(b)
    return merges


@pytest.mark.parametrize("name", ["all", *WEIGHTS])
def test_merging_against_literal_merging(name):
    few = find_cells(picture(40, 53, seed=2), 14)
    weights = WEIGHTS if name == "all" else {**dict.fromkeys(WEIGHTS, 0.0), name: WEIGHTS[name]}
    if name in ("size", "share"):
        weights["colour"] = 1.0  # they only scale another term
    merges = tree(few, weights)
    assert [set(pair) for pair in merges.tolist()] == literal_tree(few, weights)


def test_merging_stops_where_asked(cells):
    all_merges = tree(cells, WEIGHTS)
    assert len(all_merges) == len(cells) - 1
    np.testing.assert_array_equal(tree(cells, WEIGHTS, stop=7), all_merges[:-6])


def test_members_and_common_nodes_against_sets(cells):
    merges = tree(cells, WEIGHTS)
    members, areas = _merge.tree_members(merges, cells.areas)
    nodes = [{i} for i in range(len(cells))]
    for a, b in merges:
        nodes.append(nodes[a] | nodes[b])
    assert [set(np.flatnonzero(row)) for row in members] == nodes
    np.testing.assert_array_equal(areas, members @ cells.areas)
    common = _merge.common_nodes(merges, cells.pairs, len(cells))
    inner = nodes[len(cells) :]
    expected = [next(i for i, n in enumerate(inner) if {a, b} <= n) for a, b in cells.pairs]
    assert common.tolist() == expected


def test_outlines_against_pixels(cells):
    rng = np.random.default_rng(3)
    members = (rng.random((20, len(cells))) < 0.3).astype(np.uint8)
    members[0] = 1
    ones = np.ones(len(cells.pairs), np.float32)
    strengths = rng.random(len(cells.pairs)).astype(np.float32)
    arguments = (cells.areas, cells.boxes)
    length, mean, area, box_area = _merge.outlines(
        members, cells.pairs, cells.lengths, ones, *arguments
    ).T
    for k, mask in enumerate(members[:, cells.labels].astype(bool)):
        steps = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        y, x = np.nonzero(mask)
        assert length[k] == steps
        assert area[k] == mask.sum()
        assert box_area[k] == (np.ptp(y) + 1) * (np.ptp(x) + 1)
    np.testing.assert_allclose(mean[1:], 1)
    assert mean[0] == 0  # no outline: all of the image
    got = _merge.outlines(members, cells.pairs, cells.lengths, strengths, *arguments)[1:, 1]
    cut = members[1:, cells.pairs[:, 0]] != members[1:, cells.pairs[:, 1]]
    expected = [np.average(strengths[c], weights=cells.lengths[c]) for c in cut]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("max_iou", [0.2, 0.5, 1.0])
def test_suppression_against_literal_suppression(cells, max_iou):
    rng = np.random.default_rng(4)
    members = (rng.random((60, len(cells))) < rng.random((60, 1))).astype(np.uint8)
    members[:, 0] = 1
    members[7] = members[3]
    masks = members[:, cells.labels].astype(bool)
    kept = []
    for k, mask in enumerate(masks):
        if all((mask & masks[j]).sum() <= max_iou * (mask | masks[j]).sum() for j in kept):
            kept.append(k)
    assert _merge.suppress(members, cells.areas, max_iou, 60).tolist() == kept
    assert _merge.suppress(members, cells.areas, max_iou, 3).tolist() == kept[:3]


def test_cells_cover_the_image_and_describe_it(cells):
    image = picture()
    count = len(cells)
    assert cells.labels.shape == image.shape[:2] and count == 60
    np.testing.assert_array_equal(np.bincount(cells.labels.ravel()), cells.areas)
    np.testing.assert_allclose(cells.colour.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(cells.texture.sum(axis=1), 1, rtol=1e-5)


def test_merged_cells_are_described_like_new_ones(cells):
    lab = cv2.cvtColor(picture().astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    direct = cells_module._describe(cells.labels, lab)
    for name in ("areas", "boxes", "colour", "texture"):
        np.testing.assert_allclose(
            getattr(cells, name), getattr(direct, name), rtol=1e-4, atol=1e-6
        )
    order = np.lexsort(direct.pairs.T[::-1])
    np.testing.assert_array_equal(cells.pairs, direct.pairs[order])
    np.testing.assert_array_equal(cells.lengths, direct.lengths[order])
    np.testing.assert_allclose(cells.strengths, direct.strengths[order], rtol=1e-4)


def test_candidates_are_distinct(cells):
    members, votes = _candidates(cells, 30)
    assert len(np.unique(members, axis=0)) == len(members)
    assert (members @ cells.areas >= 30).all()
    assert votes.shape == (len(cells.pairs),) and votes.min() > 0 and votes.max() <= 1


def test_the_same_image_gives_the_same_masks():
    first, again = (generate_proposals(picture(), 50) for _ in range(2))
    for name in ("labels", "membership", "areas"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_fewer_proposals_are_the_first_of_more():
    many, few = generate_proposals(picture(), 60), generate_proposals(picture(), 20)
    assert (many.num_proposals, few.num_proposals) == (60, 20)
    np.testing.assert_array_equal(few.masks(), many.masks(slice(20)))


def test_limits_hold():
    regions = generate_proposals(picture(), 200, min_area=100, max_iou=0.6)
    areas = mask_areas(regions)
    assert areas.min() >= 100 and areas.max() <= 0.95 * 70 * 101
    membership, areas = torch.from_numpy(regions.membership), torch.from_numpy(regions.areas)
    iou = overlaps(membership, areas)[0].fill_diagonal_(0)
    assert iou.max() <= 0.6 + 1e-6
    finer = generate_proposals(picture(), 200, min_area=10, max_iou=0.9)
    assert finer.num_proposals > regions.num_proposals


def test_a_clear_object_comes_first():
    image = np.full((64, 96, 3), (40, 90, 160), np.uint8)
    image[20:45, 30:70] = (200, 60, 30)
    regions = generate_proposals(image, 10)
    target = np.zeros((1, 64, 96), bool)
    target[0, 20:45, 30:70] = True
    # The ground around it has the same outline and may be the very first.
    assert best_overlaps(regions, target, [2])[0, 0] > 0.95


def test_drawn_objects_are_found():
    """Ellipses on noise: a floor under the recall, the measured table is in docs."""
    best = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        image = np.full((128, 128, 3), rng.integers(80, 170, 3), np.float64)
        masks = np.zeros((3, 128, 128), np.uint8)
        for i, mask in enumerate(masks):
            centre = (int(rng.integers(20, 108)), 22 + 42 * i)
            cv2.ellipse(mask, centre, (17, 12), int(rng.integers(180)), 0, 360, 1, -1)
            image[mask > 0] = rng.integers(0, 255, 3)
        image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        regions = generate_proposals(image, 80)
        assert regions.num_proposals <= 80
        visible = masks.astype(bool)
        for i in range(3):
            visible[i] &= ~visible[i + 1 :].any(axis=0)
        best.append(best_overlaps(regions, visible, [80])[0])
    assert np.mean(np.concatenate(best) > 0.75) >= 0.8


def test_large_images_are_shrunk():
    image = cv2.resize(picture(), (303, 210))
    regions = generate_proposals(image, 30, long_side=101)
    assert regions.size == (210, 303)
    masks = regions.masks()
    areas = masks.sum(axis=(1, 2))
    assert (areas > 0).all() and areas.min() >= 0.7 * 80


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (3, 2), (40, 30)])
def test_images_without_detail_give_one_mask(size):
    regions = generate_proposals(np.full((*size, 3), 90, np.uint8), 5)
    assert regions.num_proposals == 1 and regions.masks().all()


def test_noise_and_grey():
    noise = np.random.default_rng(5).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    assert generate_proposals(noise, 10).num_proposals == 10
    grey = np.repeat(noise[..., :1], 3, axis=2)
    assert generate_proposals(grey, 10, num_cells=5).size == (33, 47)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((4, 5), np.uint8), {}, r"shape \(4, 5\), expected uint8 RGB"),
        (np.zeros((4, 5, 4), np.uint8), {}, "expected uint8 RGB"),
        (np.zeros((4, 5, 3), np.float32), {}, "float32 .*expected uint8"),
        (np.zeros((0, 5, 3), np.uint8), {}, "expected uint8 RGB"),
        (picture(), {"max_proposals": 0}, "max_proposals is 0"),
        (picture(), {"num_cells": 0}, "num_cells is 0"),
        (picture(), {"long_side": 0}, "long_side is 0"),
        (picture(), {"min_area": -1}, "min_area is -1"),
        (picture(), {"max_iou": 0.0}, "max_iou is 0.0"),
        (picture(), {"max_iou": 1.5}, "max_iou is 1.5"),
    ],
)
def test_wrong_arguments(image, options, message):
    with pytest.raises(ValueError, match=message):
        generate_proposals(image, **{"max_proposals": 5, **options})


def test_recall_by_hand():
    masks = np.zeros((3, 10, 10), bool)
    masks[0, :, :4] = True
    masks[1, :, :8] = True
    masks[2, 0, 0] = True
    objects = masks[[1, 2]]
    best = best_overlaps(encode(masks), objects, [1, 2, 99])
    np.testing.assert_allclose(best, [[0.5, 1 / 40], [1, 1 / 40], [1, 1]])
    assert best_overlaps(encode(masks), masks[:0], [1]).shape == (1, 0)
    np.testing.assert_array_equal(best_overlaps(encode(masks[:0]), objects, [5]), [[0, 0]])

    best = np.array([[0.5, 0.7, 0.1, 0.9], [0.5, 0.7, 0.69, 0.9]])
    areas = np.array([1023, 1024, 9215, 9216])
    rows = {(r["proposals"], r["size"]): r for r in recall_table(best, areas, [1, 2], [0.5, 0.7])}
    assert rows[1, "all"]["recall"] == {"0.5": 0.75, "0.7": 0.5}
    assert rows[2, "all"]["recall"] == {"0.5": 1.0, "0.7": 0.5}
    assert rows[1, "small"]["recall"] == {"0.5": 1.0, "0.7": 0.0}
    assert [rows[1, s]["objects"] for s in ("small", "medium", "large")] == [1, 2, 1]
    assert rows[1, "medium"]["recall"] == {"0.5": 0.5, "0.7": 0.5}
    assert rows[1, "over 32x32"]["objects"] == 3
    assert rows[2, "over 32x32"]["mean_iou"] == pytest.approx((0.7 + 0.69 + 0.9) / 3)
    none = recall_table(best[:, :1], areas[:1], [1, 2], [0.5])
    assert none[3]["size"] == "large" and none[3]["recall"] is None
    text = table_text(none).splitlines()
    assert text[0] == "| proposals | objects | number | IoU >= 0.5 | mean IoU |"
    assert text[2] == "| 1 | all | 1 | 1.000 | 0.500 |" and text[5] == "| 1 | large | 0 | - | - |"
