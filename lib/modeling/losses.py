"""The losses of one image, as pure functions of scores and targets.

Every probability is clamped to [1e-6, 1 - 1e-6] before its logarithm. Nothing to learn from gives
0, never NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6


def bag_loss(cls_prob: Tensor, det_prob: Tensor, image_labels: Tensor) -> Tensor:
    """Multiple instance learning: the image's score of a class is the sum over its proposals.

    Args:
        cls_prob: (P, C+1), softmax over classes.
        det_prob: (P, C+1), softmax over proposals.
        image_labels: (C,) in {0, 1}.

    Returns:
        Binary cross-entropy, mean over the C+1 columns; the background is always present.
    """
    image_score = (cls_prob * det_prob).sum(dim=0)  # (C+1,)
    return _cross_entropy(image_score, _with_background(image_labels)).mean()


def pcl_loss(cls_prob: Tensor, number: Tensor, column: Tensor) -> Tensor:
    """Proposal clusters (PCL, Tang et al. 2018): the mean of a cluster should be of its class.

    The members of the background cluster count each on its own.

    Args:
        cls_prob: (P, C+1).
        number: (P,) int64, the cluster of every proposal, 0 for none.
        column: (P,) int64, the column of that cluster; -1 for none.

    Returns:
        Mean over the clustered proposals of the binary cross-entropy (a mean over columns) of
        their cluster, times 12.
    """
    is_member = (number > 0).to(cls_prob.dtype)
    # Clusters are counted from 0 in ascending order, so that there are at most P. (`unique` does
    # the same, but waits for a GPU to know the size of its result.)
    ordered, order = number.sort()
    is_next = ordered != torch.cat([ordered[:1], ordered[:-1]])
    cluster = torch.empty_like(number).scatter_(0, order, is_next.cumsum(dim=0))  # (P,)
    size = torch.zeros_like(is_member).index_add(0, cluster, torch.ones_like(is_member))
    total = torch.zeros_like(cls_prob).index_add(0, cluster, cls_prob)
    mean = total[cluster] / size[cluster][:, None]  # (P, C+1): n members give n terms
    prob = torch.where((column == 0)[:, None], cls_prob, mean)
    target = F.one_hot(column.clamp(min=0), cls_prob.shape[1]).to(cls_prob.dtype)
    loss = _cross_entropy(prob, target).mean(dim=1)
    return 12 * (loss * is_member).sum() / (is_member.sum() + 1e-6)


def refine_cls_loss(cls_prob: Tensor, column: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross-entropy of a stage's classification, mean over the labelled proposals.

    Args:
        cls_prob: (P, C+1).
        column: (P,) int64, -1 without a label.
        weight: (P,).
    """
    is_labelled = column >= 0
    prob = cls_prob.gather(1, column.clamp(min=0)[:, None])[:, 0]
    return _mean_where(is_labelled, -_clamp(prob).log() * weight)


def refine_iou_loss(iou: Tensor, column: Tensor, weight: Tensor, iou_target: Tensor) -> Tensor:
    """Weighted smooth L1 of a stage's integrity, mean over the proposals labelled foreground.

    Args:
        iou: (P, C+1), sigmoid.
        column: (P,) int64, -1 without a label, 0 background.
        weight: (P,).
        iou_target: (P,) in {0, 1}.
    """
    of_class = iou.gather(1, column.clamp(min=0)[:, None])[:, 0]
    loss = F.smooth_l1_loss(of_class, iou_target, reduction="none")
    return _mean_where(column > 0, loss * weight)


def refine_bag_loss(
    cls_prob: Tensor, iou: Tensor, column: Tensor, weight: Tensor, image_labels: Tensor
) -> Tensor:
    """The best proposal of a present class should show it; no proposal should show an absent one.

    The score is cls_prob * iou. Of a present class only the proposals labelled with it compete, and
    the loss is weighted as the winner is. A present class that labels no proposal adds a constant,
    without gradient.

    Args:
        cls_prob: (P, C+1), softmax over classes.
        iou: (P, C+1), sigmoid.
        column: (P,) int64, -1 without a label.
        weight: (P,).
        image_labels: (C,) in {0, 1}.

    Returns:
        Binary cross-entropy, mean over the C+1 columns; 0 when there are no labels at all.
    """
    target = _with_background(image_labels)
    is_present = target > 0
    score = _clamp(cls_prob) * _clamp(iou)
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

    Where a network has diverged, NaN stays NaN, to be reported by whoever trains it; torch's own
    function fails an assertion, which on CUDA ends the use of the device.
    """
    prob = _clamp(prob)
    return -(torch.xlogy(target, prob) + torch.special.xlog1py(1 - target, -prob))


def _with_background(image_labels: Tensor) -> Tensor:
    return torch.cat([image_labels.new_ones(1), image_labels])


def _mean_where(chosen: Tensor, value: Tensor) -> Tensor:
    return (value * chosen).sum() / chosen.sum().clamp(min=1)
