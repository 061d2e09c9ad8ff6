"""Clusters for any proposals: whole objects by what a class looks like in all its images.

The published rule (lib/prm/clusters.py) averages the proposals that cover a peak, which among
proposals of many levels gives the part under the peak. Here a linear classifier tells, cell by
cell, the objects of a class from what surrounds them. It learns from image-level labels alone:
first the proposals where the PRM responds stand for the objects, then, for some rounds, those that
the classifier itself prefers. What is wrong in one image is outvoted by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.coco import ImageRecord
from lib.modeling.backbones.backbone import Layer
from lib.prm.images import SquareImages
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import Peaks, find_peaks, select_peaks
from lib.structures import Clusters, Regions

_ROUNDS = 4
_FINEST_STRIDE = 8
"""Of the backbone's maps that the classifier sees; what is finer knows edges, not objects."""
_RESPONSE_POWER, _POWER = 0.5, 0.3
"""Of a proposal's share of the image, times the contrast of the PRM's response, of the classifier.
Responses fill the most telling part alone, so that size has to count for more."""
_SPLIT = 0.8
"""Proposals around single peaks replace one around several when they reach this part of it."""
_APART = 0.5
"""Two objects share less than this part of the smaller one."""
_MEMBER_IOU = 0.5
_SOFTNESS = 0.05
"""Members of a cluster whose score is lower by this part of the best count 1/e as much."""
_CELLS = 150
"""Cells of an image that the classifier learns from in a round."""
_DECAY_ALL, _DECAY_CLASS = 3e-4, 1e-3
_MEMORY = 2**30
"""Bytes of feature maps to learn from; of more images, drawn ones are taken."""


@dataclass(frozen=True, eq=False)
class SeenImage:
    """The PRM's view of an image, for its N present classes."""

    peaks: Peaks
    class_idx: np.ndarray
    """(N,) int64, ascending."""
    response: np.ndarray
    """(N, h, w) float32, on the cells of the backbone."""
    features: np.ndarray
    """(D, h, w) float16, maps of several layers."""


def see_images(
    net: PeakResponseNet, records: Sequence[ImageRecord], folder: str | Path
) -> Iterator[SeenImage | Exception]:
    """Yields the PRM's view of every image in order, or the error of reading it.

    On a CPU as many images at a time as PyTorch has threads, each on one: single images are too
    small to share.

    Args:
        net: in evaluation mode, on the device to use.
        folder: where the images lie.
    """
    images = SquareImages(records, folder, net.settings.image_size, memory_limit=0)
    threads = torch.get_num_threads()
    at_once = threads if next(net.parameters()).device.type == "cpu" else 1
    with ThreadPoolExecutor(at_once) as pool:
        for start in range(0, len(records), 8 * at_once):
            some = range(start, min(start + 8 * at_once, len(records)))
            torch.set_num_threads(max(1, threads // at_once))
            try:
                seen = list(pool.map(partial(_see, net, images), some))
            finally:
                torch.set_num_threads(threads)
            yield from seen


@torch.no_grad()
def _see(net: PeakResponseNet, images: SquareImages, index: int) -> SeenImage | Exception:
    try:
        image = images.batch([index], ["none"])
    except (ValueError, OSError) as error:
        return error
    maps = net.backbone.feature_maps(image.to(next(net.parameters()).device))
    response = net.classifier(maps[-1])  # (1, C, h, w)
    maps = [F.adaptive_avg_pool2d(m, response.shape[2:])[0] for m in maps[-len(_layers(net)) :]]
    labels = images.records[index].image_labels
    class_idx = np.flatnonzero(labels)
    peaks = find_peaks(net.smoothed(response)[0])
    return SeenImage(
        peaks=select_peaks(peaks, labels, net.settings),
        class_idx=class_idx,
        response=response[0, class_idx].cpu().numpy(),
        features=torch.cat(maps).half().cpu().numpy(),
    )


def num_images_to_learn_from(net: PeakResponseNet) -> int:
    """Number of images whose feature maps are kept in memory together."""
    stride = net.backbone.stride
    depth = sum(layer.channels for layer in _layers(net))
    return max(1, _MEMORY // (2 * depth * (net.settings.image_size // stride + 1) ** 2))


def _layers(net: PeakResponseNet) -> list[Layer]:
    return [layer for layer in net.backbone.layers if layer.stride >= _FINEST_STRIDE]


@dataclass(frozen=True, eq=False)
class Foreground:
    """Tells the objects of a class from what surrounds them, cell by cell."""

    mean: np.ndarray
    """(D,) float32, of the features."""
    weight: np.ndarray
    """(C, D) float32; for a class without images that of objects in general."""
    bias: np.ndarray
    """(C,) float32."""

    def prob(self, image: SeenImage) -> np.ndarray:
        """(N, h, w) float32 in [0, 1]: how surely a cell shows an object of a present class."""
        depth, height, width = image.features.shape
        cells = image.features.reshape(depth, -1).astype(np.float32) - self.mean[:, None]
        logit = self.weight[image.class_idx] @ cells + self.bias[image.class_idx, None]
        return (1 / (1 + np.exp(-logit))).reshape(-1, height, width)


def fit_foreground(
    images: Sequence[SeenImage],
    regions_of: Callable[[int], Regions],
    num_classes: int,
    seed: int = 0,
) -> Foreground:
    """Learns from images with image-level labels and proposals.

    Args:
        images: at least one.
        regions_of: the proposals of an image by its place in `images`.
        num_classes: C.
        seed: draws the cells to learn from.
    """
    rng = np.random.default_rng(seed)
    foreground = None
    for _ in range(_ROUNDS):
        cells, targets, balances, classes = [], [], [], []
        for index, image in enumerate(images):
            masks = _soft_masks(regions_of(index), image, foreground)  # (N, h, w)
            count = min(_CELLS, masks[0].size)
            for class_idx, mask in zip(image.class_idx, masks, strict=True):
                chosen = rng.choice(mask.size, count, replace=False)
                cells.append(image.features.reshape(len(image.features), -1)[:, chosen].T)
                target = mask.reshape(-1)[chosen]
                inside = np.clip(target.mean(), 1e-3, 1 - 1e-3)
                targets.append(target)
                balances.append(target / inside + (1 - target) / (1 - inside))
                classes.append(np.full(count, class_idx))
        parts = map(np.concatenate, (cells, targets, balances, classes))
        foreground = _fit(*parts, num_classes)
    return foreground


def foreground_clusters(regions: Regions, image: SeenImage, foreground: Foreground) -> Clusters:
    """Groups proposals around whole objects, one cluster an object, and a background cluster.

    An object's proposal is the one that contrasts most with the rest of the image, by the
    probability of its class inside and outside. Where it covers several peaks, the best proposals
    that cover one of them each take its place, if they are nearly as good; where a peak lies
    elsewhere, its best proposal comes beside it. A proposal joins the object that it overlaps most,
    by an IoU above 0.5. Proposals that touch a member and join no cluster are the background
    cluster, whose number follows that of the last object.

    Args:
        regions: the proposals of the image. P may be 0.
    """
    overlap = _Overlap(regions)
    number = np.zeros(regions.num_proposals, np.int64)
    column = np.full(regions.num_proposals, -1, np.int64)
    if not regions.num_proposals or not len(image.class_idx):
        return Clusters(number=number, column=column)
    picks, classes = [], []
    for class_idx, prob in zip(image.class_idx, foreground.prob(image), strict=True):
        found = _find_objects(overlap, prob, _POWER, _peak_regions(regions, image, class_idx))
        picks += found.picks
        classes += [class_idx] * len(found.picks)
    iou = overlap.iou(picks)  # (P, K)
    nearest = iou.argmax(axis=1)
    joins = iou.max(axis=1) > _MEMBER_IOU
    number[joins] = nearest[joins] + 1
    column[joins] = np.array(classes)[nearest[joins]] + 1
    touched = regions.membership[joins].any(axis=0)  # (R,)
    background = regions.membership[:, touched].any(axis=1) & ~joins
    number[background] = len(picks) + 1
    column[background] = 0
    return Clusters(number=number, column=column)


@dataclass(frozen=True, eq=False)
class _Objects:
    score: np.ndarray
    """(P,) contrast of every proposal with the rest of the image, times a power of its size."""
    picks: list[int]
    """The proposals of the objects."""


class _Overlap:
    """Sums over the proposals of an image, and how they overlap."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.membership = regions.membership.astype(np.float32)  # (P, R)
        self.area = self.membership @ regions.areas  # (P,)
        self.pixels = float(regions.areas.sum())

    def sums(self, cells: np.ndarray) -> tuple[np.ndarray, float]:
        """Sum of a map (h, w) over every proposal's pixels (P,), and over the image."""
        height, width = self.regions.size
        values = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
        per_region = np.bincount(
            self.regions.labels.reshape(-1), values.reshape(-1), len(self.regions.areas)
        )
        return self.membership @ per_region, float(per_region.sum())

    def shared(self, proposal_idx: Sequence[int]) -> np.ndarray:
        """(P, K) pixels that the proposals share with these."""
        inside = self.membership[list(proposal_idx)] * self.regions.areas
        return self.membership @ inside.T

    def iou(self, proposal_idx: Sequence[int]) -> np.ndarray:
        """(P, K)"""
        shared = self.shared(proposal_idx)
        union = self.area[:, None] + self.area[list(proposal_idx)] - shared
        return shared / np.maximum(union, 1)


def _find_objects(overlap: _Overlap, cells: np.ndarray, power: float, at: np.ndarray) -> _Objects:
    """Proposals that stand for the objects of one class.

    Args:
        cells: (h, w) float32, how much a cell shows of the class.
        power: of a proposal's share of the image.
        at: (K,) regions in which the peaks of the class lie.
    """
    sums, total = overlap.sums(cells)
    inside = sums / np.maximum(overlap.area, 1)
    outside = (total - sums) / np.maximum(overlap.pixels - overlap.area, 1)
    size = (overlap.area / overlap.pixels) ** power
    score = np.maximum(inside - outside, 0) * size
    best = int(score.argmax())
    # Beside one object the others are no background: that is what lies outside of the best.
    alone = np.maximum(inside - outside[best], 0) * size
    covers = overlap.regions.membership[:, at]  # (P, K)
    singly = covers & (covers.sum(axis=1) == 1)[:, None]
    of_peaks = np.where(singly, alone[:, None], -1.0)  # (P, K)
    found = of_peaks.argmax(axis=0)[of_peaks.max(axis=0, initial=-1) >= _SPLIT * score[best]]
    kept: list[int] = []
    for pick in sorted(set(found.tolist()), key=lambda p: -alone[p]):
        if _are_apart(overlap, pick, kept):
            kept.append(pick)
    if len(kept) < 2:
        kept = [best, *kept] if _are_apart(overlap, best, kept) else [best]
    return _Objects(score, kept)


def _are_apart(overlap: _Overlap, pick: int, others: Sequence[int]) -> bool:
    smaller = np.minimum(overlap.area[pick], overlap.area[list(others)])
    return bool((overlap.shared(others)[pick] < _APART * smaller).all())


def _soft_masks(regions: Regions, image: SeenImage, foreground: Foreground | None) -> np.ndarray:
    """(N, h, w) float32 in [0, 1]: where the members of the clusters lie; the best count most."""
    size = image.response.shape[1:]
    if not regions.num_proposals:
        return np.zeros(image.response.shape, np.float32)
    maps, power = image.response, _RESPONSE_POWER
    if foreground is not None:
        maps, power = foreground.prob(image), _POWER
    overlap = _Overlap(regions)
    masks = []
    for class_idx, cells in zip(image.class_idx, maps, strict=True):
        found = _find_objects(overlap, cells, power, _peak_regions(regions, image, class_idx))
        near = overlap.iou(found.picks) > _MEMBER_IOU  # (P, K)
        score = np.where(near, found.score[:, None], -np.inf)
        scale = max(_SOFTNESS * found.score.max(), 1e-9)
        share = np.exp((score - score.max(axis=0)) / scale)
        share /= share.sum(axis=0)
        mask = (share.T @ overlap.membership).max(axis=0).astype(np.float32)  # (R,)
        masks.append(cv2.resize(mask[regions.labels], size[::-1], interpolation=cv2.INTER_AREA))
    return np.stack(masks)


def _peak_regions(regions: Regions, image: SeenImage, class_idx: int) -> np.ndarray:
    """(K,) regions in which the peaks of a class lie."""
    height, width = regions.size
    peaks = image.peaks.take(np.flatnonzero(image.peaks.class_idx == class_idx))
    return regions.labels[peaks.y * height // peaks.size[0], peaks.x * width // peaks.size[1]]


def _fit(
    cells: np.ndarray,
    targets: np.ndarray,
    balances: np.ndarray,
    classes: np.ndarray,
    num_classes: int,
) -> Foreground:
    """The classifier of a round: the mean of one for all classes and one for each.

    Args:
        cells: (M, D) float16.
        targets: (M,) float32 in [0, 1], how much of a cell lies in an object.
        balances: (M,) float32, how much a cell counts.
        classes: (M,) int64, the class that it is looked at for.
    """
    x = torch.from_numpy(cells).float()
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp(min=1e-3)
    x = (x - mean) / deviation
    target, balance = torch.from_numpy(targets), torch.from_numpy(balances)
    weight, bias = _logistic(x, target, balance, _DECAY_ALL)
    weights, biases = weight.repeat(num_classes, 1), bias.repeat(num_classes)
    for class_idx in np.unique(classes):
        own = torch.from_numpy(classes == class_idx)
        weight, bias = _logistic(x[own], target[own], balance[own], _DECAY_CLASS)
        weights[class_idx] = (weights[class_idx] + weight) / 2
        biases[class_idx] = (biases[class_idx] + bias) / 2
    return Foreground(mean.numpy(), (weights / deviation).numpy(), biases.numpy())


def _logistic(x: Tensor, target: Tensor, balance: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Logistic regression: weights (D,) and bias ()."""
    weight = torch.zeros(x.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        each = F.binary_cross_entropy_with_logits(x @ weight + bias, target, reduction="none")
        total = (each * balance).sum() / balance.sum() + decay * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weight.detach(), bias.detach()
