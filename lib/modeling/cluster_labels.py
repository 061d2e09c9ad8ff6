"""Instances from clusters around whole objects (`prm.clusters: foreground`); beyond the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.structures import Clusters, Instances


@torch.no_grad()
def cluster_instances(cls_prob: Tensor, iou: Tensor, clusters: Clusters | None) -> Instances:
    """Of every cluster, in every stage, the member that stands for it best.

    That is the one with the highest sum of the teacher's class probability and the mean IoU with
    all members. Its weight is the mean of their class probabilities.

    Args:
        cls_prob: (S, P, C+1), class probabilities of every stage's teacher.
        iou: (P, P).

    Raises:
        ValueError: there are no clusters.
    """
    if clusters is None:
        raise ValueError("mining.labels is `clusters`, got an image without clusters")
    class_idx = torch.full_like(cls_prob[:, :, 0], -1, dtype=torch.int64)  # (S, P)
    weight = torch.zeros_like(cls_prob[:, :, 0])
    stages = torch.arange(len(cls_prob), device=cls_prob.device)
    for k in clusters.number[clusters.column > 0].unique().tolist():
        members = (clusters.number == k).nonzero()[:, 0]  # (M,)
        column = clusters.column[members[0]]
        confidence = cls_prob[:, members, column]  # (S, M)
        typical = iou[members][:, members].mean(dim=1)  # (M,)
        best = members[(confidence + typical).argmax(dim=1)]  # (S,)
        class_idx[stages, best] = column - 1
        weight[stages, best] = confidence.mean(dim=1)
    return Instances(class_idx, weight)
