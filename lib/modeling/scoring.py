"""Post-processing: from the scores of several passes to one score for each proposal and class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.structures import Scores, View


def proposal_scores(scores: Scores, mil_branch: bool = False) -> Tensor:
    """Score of every proposal for every class from one pass (docs/specification.md#inference).

    Args:
        mil_branch: the mean of this and the MIL branch's score, also in a network with stages.

    Returns:
        (P, C) float32 in [0, 1], without background: the mean over the stages of class
        probability times integrity; class times detection probability of the MIL branch in a
        network without stages.
    """
    mil_score = (scores.cls_prob * scores.det_prob)[:, 1:]
    if len(scores.refine_cls_prob) == 0:
        return mil_score
    by_stage = scores.refine_cls_prob * scores.refine_integrity_prob  # (S, P, C+1)
    score = by_stage.mean(dim=0)[:, 1:]
    return (score + mil_score) / 2 if mil_branch else score


@torch.inference_mode()
def score_passes(
    model: nn.Module,
    passes: Sequence[View],
    device: torch.device | str,
    mil_branch: bool = False,
) -> Tensor:
    """Mean of `proposal_scores` over several views of one image.

    Args:
        model: a FastCIMNet in evaluation mode, on `device`.
        passes: the image at every scale and mirroring, at least one, with the same proposals.
            Neighbours of one size, such as an image and its mirror image, pass together.
        mil_branch: as for `proposal_scores`.

    Returns:
        (P, C) float32 on the CPU.

    Raises:
        ValueError: there is no pass.
    """
    if not passes:
        raise ValueError("there is no pass to score; test.scales and test.flips must not be empty")
    # Memberships and clusters stay here: they can be larger than the image.
    views = [each.view().to(device, non_blocking=True) for each in passes]
    scores = [proposal_scores(s, mil_branch) for s in model.score_views(views)]
    return torch.stack(scores).mean(dim=0).cpu()
