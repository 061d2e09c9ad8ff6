"""The losses of one image, as pure functions of scores and targets.

Every probability is clamped to [1e-6, 1 - 1e-6] before its logarithm. Where there is nothing to
learn from a loss is 0, never NaN. The arguments are

    cls_prob        (P, C+1), softmax over classes; column 0 is the background
    det_prob        (P, C+1), softmax over proposals
    integrity_prob  (P, C+1), sigmoid
    column          (P,) int64, the label of every proposal: 0 background, -1 without a label
    weight          (P,), of the label
    image_labels    (C,) in {0, 1}
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6


def bag_loss(cls_prob: Tensor, det_prob: Tensor, image_labels: Tensor) -> Tensor:
    """Multiple instance learning: an image's score of a class is the sum over its proposals.

    Returns:
        Binary cross-entropy, mean over the C+1 columns; the background is always present.
    """
    image_score = (cls_prob * det_prob).sum(dim=0)  # (C+1,)
    return _cross_entropy(image_score, F.pad(image_labels, (1, 0), value=1.0)).mean()


def pcl_loss(cls_prob: Tensor, cluster_id: Tensor, cluster_column: Tensor) -> Tensor:
    """Proposal clusters (PCL, Tang et al. 2018): the mean of a cluster should be of its class.

    Members of the background cluster count individually.

    Args:
        cluster_id: (P,) int64, the cluster of every proposal, 0 for none.
        cluster_column: (P,) int64, the column of that cluster's class; -1 for none.

    Returns:
        Mean over the clustered proposals of the binary cross-entropy (a mean over columns) of
        their cluster, times 12.
    """
    together = (cluster_id[:, None] == cluster_id).to(cls_prob.dtype)  # (P, P)
    mean = together @ cls_prob / together.sum(dim=1, keepdim=True)  # (P, C+1), of the own cluster
    prob = torch.where((cluster_column == 0)[:, None], cls_prob, mean)
    target = F.one_hot(cluster_column.clamp(min=0), cls_prob.shape[1]).to(cls_prob.dtype)
    loss = _cross_entropy(prob, target).mean(dim=1)  # (P,): n members give n terms
    is_member = (cluster_id > 0).to(cls_prob.dtype)
    return 12 * (loss * is_member).sum() / (is_member.sum() + 1e-6)


def refine_cls_loss(cls_prob: Tensor, column: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross-entropy of a stage's classification, mean over the labelled proposals."""
    prob = cls_prob.gather(1, column.clamp(min=0)[:, None])[:, 0]
    return _mean_where(column >= 0, -_clamp(prob).log() * weight)


def refine_integrity_loss(
    integrity_prob: Tensor, column: Tensor, weight: Tensor, integrity_target: Tensor
) -> Tensor:
    """Weighted smooth L1 of a stage's integrity, mean over the proposals labelled foreground.

    Args:
        integrity_target: (P,) in {0, 1}.
    """
    of_class = integrity_prob.gather(1, column.clamp(min=0)[:, None])[:, 0]
    loss = F.smooth_l1_loss(of_class, integrity_target, reduction="none")
    return _mean_where(column > 0, loss * weight)


def refine_bag_loss(
    cls_prob: Tensor, integrity_prob: Tensor, column: Tensor, weight: Tensor, image_labels: Tensor
) -> Tensor:
    """The best proposal of a present class should show it; no proposal should show an absent one.

    The score is cls_prob * integrity_prob. Of a present class only the proposals labelled with it
    compete, and the loss is weighted by the winner's weight. A present class that labels no
    proposal adds a constant, without gradient.

    Returns:
        Binary cross-entropy, mean over the C+1 columns; 0 when there are no labels at all.
    """
    target = F.pad(image_labels, (1, 0), value=1.0)  # the background is always present
    is_present = target > 0
    score = _clamp(cls_prob) * _clamp(integrity_prob)
    if not len(score):
        return score.sum()  # there is no best of no proposals
    columns = torch.arange(score.shape[1], device=score.device)
    competes = (column[:, None] == columns) | ~is_present  # (P, C+1)
    # PARITY: where nothing competes, all are 0 and proposal 0 wins: -log(1e-6) times its weight.
    best, winner = score.where(competes, 0.0).max(dim=0)  # (C+1,)
    class_weight = torch.where(is_present, weight[winner], 1.0)
    loss = _cross_entropy(best, target)
    return (loss * class_weight).mean() * (column >= 0).any()


def _clamp(prob: Tensor) -> Tensor:
    return prob.clamp(_EPS, 1 - _EPS)


def _cross_entropy(prob: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy by element.

    NaN of a diverged network stays NaN, for the trainer to report; torch's own function fails an
    assertion instead.
    """
    prob = _clamp(prob)
    return -(torch.xlogy(target, prob) + torch.special.xlog1py(1 - target, -prob))


def _mean_where(chosen: Tensor, value: Tensor) -> Tensor:
    return (value * chosen).sum() / chosen.sum().clamp(min=1)
