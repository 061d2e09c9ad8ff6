"""Class-agnostic masks from the pixels of any image, best first; nothing is learned.

Cells of alike pixels are merged by several criteria into as many trees (selective search, Uijlings
et al., IJCV 2013). Every node of every tree is a candidate. The trees also vote on how strong each
border between two cells is: the later a tree joins the two, the stronger it holds the border (an
ultrametric contour map, Arbelaez et al., TPAMI 2011). Candidates with strong, compact outlines
come first; near repetitions of an earlier one are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from lib.parallel import for_each
from lib.proposals import _merge, _regions
from lib.proposals.cells import Cells, find_cells, tree
from lib.proposals.features import FindFeatures, feature_quality, spread
from lib.proposals.regions import encode_unions
from lib.proposals.store import ProposalStore
from lib.provenance import MadeFrom
from lib.structures import ImageRecord, Regions

_WEIGHTS = ("border", "colour", "texture", "fill", "size", "share")
# Chosen one after the other from random ones by the recall that each added on photographs (see
# docs/proposals.md).
_TREES = (
    (0.025, 0.8, 0.0, 0.45, 0.5, 0.6),
    (0.03, 0.05, 0.6, 0.0, 0.4, 0.3),
    (0.0, 0.2, 0.0, 0.25, 0.4, 0.6),
    (0.01, 0.0, 0.0, 0.0, 0.4, 0.9),
    (0.01, 0.1, 0.25, 0.9, 0.5, 0.6),
    (0.02, 0.4, 0.6, 0.0, 0.2, 0.6),
    (0.0, 0.2, 0.5, 0.4, 0.5, 0.3),
    (0.0, 0.2, 0.0, 0.0, 0.5, 0.3),
)
_MAX_IMAGE_FRACTION = 0.95
_RECIPE = 1
"""Goes up with every change that gives other proposals."""


def generate_proposals(
    image: np.ndarray,
    max_proposals: int,
    *,
    num_cells: int = 1000,
    min_area: int = 80,
    max_iou: float = 0.8,
    long_side: int = 640,
    find_features: FindFeatures | None = None,
) -> Regions:
    """Makes mask proposals of an image, best first. The same image always gives the same masks.

    Args:
        image: (H, W, 3) uint8 RGB.
        max_proposals: maximum number; images with little detail have fewer, but at least one.
        num_cells: small cells that the masks are made of; more cells give finer detail and
            smaller objects, and take longer.
        min_area: masks of fewer pixels are left out.
        max_iou: masks whose IoU with a better one is above this are left out. Lower values spread
            the first proposals over more objects, higher ones outline each more exactly.
        long_side: larger images are shrunk to this to find the masks, which are then enlarged.
        find_features: gives the maps of a network that help to rank the masks.

    Raises:
        ValueError: not an RGB image, or an option out of range.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}, expected uint8 RGB of (H, W, 3)"
        )
    for name, value, least in (
        ("max_proposals", max_proposals, 1),
        ("num_cells", num_cells, 1),
        ("long_side", long_side, 1),
        ("min_area", min_area, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    if not 0 < max_iou <= 1:
        raise ValueError(f"max_iou is {max_iou}, expected above 0 and at most 1")
    height, width = image.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    cells = find_cells(image, num_cells)
    members, border_votes = _candidates(cells, min_area * scale**2)
    quality = _quality(cells, members, border_votes)
    if find_features is not None:
        quality += 0.05 * feature_quality(cells, members, find_features(image))
    order = np.argsort(-quality, kind="stable")
    members, quality = members[order], quality[order]
    kept = _merge.suppress(members, cells.areas, max_iou, max_proposals)
    members, quality = members[kept], quality[kept]
    if find_features is not None:
        members = members[spread(cells, members, quality)]
    labels = cells.labels
    if scale < 1:
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return encode_unions(labels, members.view(bool))


def generate_settings(max_proposals: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the image that `generate_proposals` depends on, defaults included.

    Raises:
        ValueError: a name in `options` is none of its options.
    """
    parameters = inspect.signature(generate_proposals).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    del known["find_features"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"proposals.options: unknown {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return {"recipe": _RECIPE, "max_proposals": max_proposals, **known, **options}


def make_all(
    store: ProposalStore,
    images: Sequence[ImageRecord],
    read: Callable[[ImageRecord], np.ndarray],
    generate: Callable[[np.ndarray], Regions],
    made_from: Mapping[str, MadeFrom],
    jobs: int = -1,
) -> tuple[dict[str, int], dict[str, str]]:
    """Generates and stores the proposals of every image, replacing what is there.

    Args:
        read: gives the pixels of an image, (H, W, 3) uint8 RGB.
        generate: gives the proposals of these pixels.
        made_from: their records, by file name.
        jobs: processes; -1 is one per core.

    Returns:
        (number of proposals by file name, reason by file name of images that failed).
    """
    tasks = ((i.file_name, (store, i, read, generate, made_from[i.file_name])) for i in images)
    return for_each(_make_one, tasks, len(images), jobs, "proposals")


def _make_one(
    store: ProposalStore,
    image: ImageRecord,
    read: Callable[[ImageRecord], np.ndarray],
    generate: Callable[[np.ndarray], Regions],
    made_from: MadeFrom,
) -> int:
    cv2.setNumThreads(1)  # the processes already share the cores
    regions = generate(read(image))
    store.save(image.file_name, regions, made_from)
    return regions.num_proposals


def _candidates(cells: Cells, min_area: float) -> tuple[np.ndarray, np.ndarray]:
    """The distinct nodes of all trees, and how strong the trees hold every border.

    Returns:
        (K, N) uint8 0/1, K >= 1: cells of every node of a fitting size (all of the image where
        there is none); (E,) float32 in [0, 1]: mean over trees of how late a border goes.
    """
    num_cells = len(cells)
    fitting = []
    votes = np.zeros(len(cells.pairs), np.float64)
    for weights in _TREES:
        merges = tree(cells, dict(zip(_WEIGHTS, weights, strict=True)))
        members, areas = _merge.tree_members(merges, cells.areas)
        limit = _MAX_IMAGE_FRACTION * cells.labels.size
        fitting.append(members[(areas >= min_area) & (areas <= limit)])
        lost_at = _merge.common_nodes(merges, cells.pairs, num_cells)
        votes += (lost_at + 1) / max(num_cells - 1, 1)
    votes = (votes / len(_TREES)).astype(np.float32)
    candidates = np.concatenate(fitting)
    if len(candidates) == 0:
        return np.ones((1, num_cells), np.uint8), votes
    packed = np.packbits(candidates, axis=1)
    _, first, _ = _regions.number_keys(np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))))
    return candidates[first], votes


def _quality(cells: Cells, members: np.ndarray, border_votes: np.ndarray) -> np.ndarray:
    """(K,) how object-like a mask is: the mean strength of its outline, and its compactness."""
    described = _merge.outlines(
        members, cells.pairs, cells.lengths, border_votes, cells.areas, cells.boxes
    )
    length, strength, area, box_area = described.T
    raggedness = np.log(np.maximum(length, 1) / np.sqrt(area))
    return strength - 0.05 * raggedness + 0.1 * area / box_area
