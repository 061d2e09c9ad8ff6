"""Small cells of similar pixels along the edges of an image, from which proposals are built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from lib.proposals import _merge

_COLOUR_BINS = 16
_FIRST_MERGE = dict(border=0.03, colour=0.6, texture=0.4, fill=0.0, size=0.3, share=0.0)


@dataclass(frozen=True, eq=False)
class Cells:
    """N cells of one image and the E pairs of them that touch."""

    labels: np.ndarray
    """(H, W) int32, the cell of every pixel, 0..N-1."""
    areas: np.ndarray
    """(N,) float64, pixels."""
    boxes: np.ndarray
    """(N, 4) float32 (xmin, ymin, xmax, ymax), inclusive."""
    rim: np.ndarray
    """(N,) float32, pixels on the image's border."""
    colour: np.ndarray
    """(N, 48) float32, histograms of L, a and b together, summing to 1."""
    texture: np.ndarray
    """(N, 19) float32, histogram of flat pixels and of gradients by strength and direction."""
    pairs: np.ndarray
    """(E, 2) int32, cells that touch."""
    lengths: np.ndarray
    """(E,) float32, pixel steps across the common border."""
    strengths: np.ndarray
    """(E,) float32, sum of the colour differences (CIELAB) over these steps."""

    def __len__(self) -> int:
        return len(self.areas)


def find_cells(image: np.ndarray, num_cells: int) -> Cells:
    """Watershed of the colour gradient, merged down to `num_cells`.

    Args:
        image: (H, W, 3) uint8 RGB.
        num_cells: number of cells; an image with less detail has fewer.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    fine = _describe(_watershed(lab), lab)
    if len(fine) <= num_cells:
        return fine
    return _merged(fine, tree(fine, _FIRST_MERGE, stop=num_cells))


def tree(cells: Cells, weights: dict[str, float], stop: int = 1) -> np.ndarray:
    """Greedy merging of neighbours; see lib/proposals/_merge.pyx for the distance.

    Returns:
        (M, 2) int32: merge m made node N + m of these two nodes.
    """
    areas = cells.areas.astype(np.float32)
    described = cells.colour, cells.texture, cells.boxes, areas
    borders = cells.pairs, cells.lengths, cells.strengths
    return _merge.merge_tree(*described, *borders, weights, stop)


def _watershed(lab: np.ndarray) -> np.ndarray:
    """(H, W) int32 basins of the colour gradient around its minima over 7 x 7 pixels."""
    smooth = cv2.GaussianBlur(lab, (0, 0), 1.5)
    across = [cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1)]
    gradient = np.einsum("ijk->ij", np.hypot(*across))
    minima = gradient == cv2.erode(gradient, np.ones((7, 7), np.uint8))
    markers, _ = ndimage.label(minima, np.ones((3, 3)))
    return watershed(gradient, markers).astype(np.int32) - 1


def _describe(labels: np.ndarray, lab: np.ndarray) -> Cells:
    count = int(labels.max()) + 1
    flat = labels.reshape(-1)
    areas = np.bincount(flat, minlength=count).astype(np.float64)
    found = ndimage.find_objects(labels + 1)
    boxes = [[c.start, r.start, c.stop - 1, r.stop - 1] for r, c in found]
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    colour = [_histogram(flat, bins, _COLOUR_BINS, areas) / 3 for bins in _colour_bins(lab)]
    pairs, lengths, strengths = _merge.cell_borders(labels, *_steps(lab))
    return Cells(
        labels=labels,
        areas=areas,
        boxes=np.array(boxes, np.float32),
        rim=np.bincount(edge, minlength=count).astype(np.float32),
        colour=np.concatenate(colour, axis=1),
        texture=_histogram(flat, _texture_bins(lab[..., 0]), 19, areas),
        pairs=pairs,
        lengths=lengths,
        strengths=strengths,
    )


def _colour_bins(lab: np.ndarray) -> np.ndarray:
    """(3, H, W) bins of L in 0..100, a and b in -60..60."""
    low = np.float32((0, -60, -60))
    scaled = (lab - low) / (np.float32((100, 60, 60)) - low)
    return np.clip(scaled * _COLOUR_BINS, 0, _COLOUR_BINS - 1).astype(np.int32).transpose(2, 0, 1)


def _texture_bins(lightness: np.ndarray) -> np.ndarray:
    """(H, W) 0 for flat pixels, else 1 + 6 * (weak, medium, strong) + direction."""
    smooth = cv2.GaussianBlur(lightness, (0, 0), 1)
    dx, dy = cv2.Sobel(smooth, -1, 1, 0) / 8, cv2.Sobel(smooth, -1, 0, 1) / 8
    direction = ((np.arctan2(dy, dx) % np.pi) / np.pi * 6).astype(np.int32) % 6
    strength = np.digitize(np.hypot(dx, dy), [1, 3, 7])
    return np.where(strength == 0, 0, 1 + 6 * (strength - 1) + direction)


def _histogram(flat: np.ndarray, bins: np.ndarray, size: int, areas: np.ndarray) -> np.ndarray:
    counts = np.bincount(flat * np.int64(size) + bins.reshape(-1), minlength=len(areas) * size)
    return (counts.reshape(len(areas), size) / areas[:, None]).astype(np.float32)


def _steps(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour differences across every border between two pixels, mean of a fine and a wider step.

    Returns:
        (H, W-1) float32 to the right, (H-1, W) float32 downwards.
    """
    to_right, down = 0, 0
    for reach in (1, 3):  # from reach - 1 pixels before the border to as many behind it
        smooth = cv2.GaussianBlur(lab, (0, 0), reach / 2)
        to_right = to_right + _step(smooth.swapaxes(0, 1), reach).T / 2
        down = down + _step(smooth, reach) / 2
    return np.ascontiguousarray(to_right), down


def _step(lab: np.ndarray, reach: int) -> np.ndarray:
    """(H-1, W) float32, colour difference from `reach` pixels above a border to those below."""
    padded = np.pad(lab, ((reach, reach), (0, 0), (0, 0)), mode="edge")
    step = padded[2 * reach : 2 * reach + len(lab) - 1] - padded[1 : len(lab)]
    return np.sqrt(np.einsum("ijk,ijk->ij", step, step))


def _merged(cells: Cells, merges: np.ndarray) -> Cells:
    """The cells after these merges, in the order of their nodes."""
    root = np.arange(len(cells) + len(merges))
    for node in range(len(root) - 1, len(cells) - 1, -1):
        root[merges[node - len(cells)]] = root[node]
    new = np.unique(root[: len(cells)], return_inverse=True)[1].astype(np.int32)
    order = np.argsort(new, kind="stable")
    starts = np.flatnonzero(np.diff(new[order], prepend=-1))
    areas = np.add.reduceat(cells.areas[order], starts)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat((values * cells.areas[:, None])[order], starts)
        return (sums / areas[:, None]).astype(np.float32)

    low = np.minimum.reduceat(cells.boxes[order, :2], starts)
    high = np.maximum.reduceat(cells.boxes[order, 2:], starts)
    ends = np.sort(new[cells.pairs], axis=1)
    apart = ends[:, 0] != ends[:, 1]
    pairs, number = np.unique(ends[apart], axis=0, return_inverse=True)
    of_pair = partial(np.bincount, number.ravel(), minlength=len(pairs))
    return Cells(
        labels=new[cells.labels],
        areas=areas,
        boxes=np.concatenate([low, high], axis=1),
        rim=np.add.reduceat(cells.rim[order], starts),
        colour=mean(cells.colour),
        texture=mean(cells.texture),
        pairs=pairs,
        lengths=of_pair(cells.lengths[apart]).astype(np.float32),
        strengths=of_pair(cells.strengths[apart]).astype(np.float32),
    )
