"""Scoring the proposals of an image, averaged over scales and mirrorings (SPEC 7)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from lib.data.loader import CimDataset, ReadImage
from lib.data.transforms import Flip
from lib.modeling.model_builder import CIMNet
from lib.structures import Sample, Scores, View

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def proposal_scores(scores: Scores) -> Tensor:
    """What one pass says of every proposal and class.

    Returns:
        (P, C) float32 in [0, 1], without background: the mean over the stages of class
        probability times integrity; class times detection probability of the MIL branch in a
        network without stages.
    """
    if len(scores.refine_cls) == 0:
        return (scores.cls_prob * scores.det_prob)[:, 1:]
    return (scores.refine_cls * scores.refine_iou).mean(dim=0)[:, 1:]  # (S, P, C+1) to (P, C)


@torch.inference_mode()
def score_passes(model: CIMNet, passes: Sequence[View], device: torch.device | str) -> Tensor:
    """Mean of `proposal_scores` over several views of one image.

    Args:
        model: in evaluation mode, on `device`.
        passes: the image at every scale and mirroring, at least one, with the same proposals.
            Those of one size, such as an image and its mirror image, had best be neighbours.

    Returns:
        (P, C) float32 on the CPU.

    Raises:
        ValueError: there is no pass.
    """
    if not passes:
        raise ValueError("there is no pass to score; test.scales and test.flips must not be empty")
    # Memberships and clusters stay here: they can be larger than the image.
    views = [each.view().to(device, non_blocking=True) for each in passes]
    return torch.stack([proposal_scores(s) for s in model.score_views(views)]).mean(dim=0).cpu()


def read_passes(
    dataset: CimDataset, index: int, scales: Sequence[int], flips: Sequence[Flip]
) -> tuple[ReadImage, list[Sample]]:
    """An image with all its passes; the files are read once.

    Raises:
        FileNotFoundError, ValueError: as `CimDataset.read`.
    """
    read = dataset.read(index)
    return read, [dataset.view(read, scale, flip) for scale in scales for flip in flips]


def map_ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], num_threads: int
) -> Iterator[_Result]:
    """`map`, with up to `num_threads` + 1 results made ahead by threads; 0 makes none ahead."""
    if num_threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > num_threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
