"""Scoring the proposals of an image, averaged over scales and mirrorings (SPEC 7)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lib.structures import Sample, Scores


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
def score_passes(model: nn.Module, passes: Iterable[Sample], device: torch.device) -> Tensor:
    """Mean of `proposal_scores` over several views of one image.

    Args:
        model: in evaluation mode.
        passes: the image at every scale and mirroring, at least one, with the same proposals.

    Returns:
        (P, C) float32 on the CPU.
    """
    total, count = None, 0
    for sample in passes:
        sample = sample.to(device, non_blocking=True)
        scores = proposal_scores(model(sample.image[None], sample.boxes, sample.roi_masks))
        total = scores if total is None else total + scores
        count += 1
    if total is None:
        raise ValueError("no pass to score: test.scales and test.flips must not be empty")
    return (total / count).cpu()
