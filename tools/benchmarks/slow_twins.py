"""The definitions of docs/specification.md in loops over classes, proposals and pairs.

What the fast code is compared with, in the tests number by number, in the benchmarks by time.
float32 where the order of rounding could matter (weights, overlaps).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lib.modeling.heads import CIMMiner
from lib.structures import Clusters, Instances, Targets

Found = dict[int, tuple[int, float]]
"""{proposal: (class, weight)} of the instances of one stage."""


def pairwise_overlaps(
    masks: np.ndarray, rows: Iterable[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """IoU and containment pair by pair on the pixels of (P, H, W) bool masks.

    Args:
        rows: only these i of `[i, j]` are computed; None is all.

    Returns:
        (P, P) float32 each, 0 in rows left out and where a mask is empty.
    """
    count = len(masks)
    iou, containment = np.zeros((2, count, count), np.float32)
    for i in range(count) if rows is None else rows:
        for j in range(count):
            shared = np.float32((masks[i] & masks[j]).sum())
            if shared:
                iou[i, j] = shared / np.float32((masks[i] | masks[j]).sum())
                containment[i, j] = shared / np.float32(masks[j].sum())
    return iou, containment


class LiteralMiner(CIMMiner):
    """The miner in loops; takes and gives what `CIMMiner` does."""

    def mine(
        self,
        cls_prob: Tensor,
        integrity: Tensor,
        present: Tensor,
        iou: Tensor,
        containment: Tensor,
        clusters: Clusters | None = None,
    ) -> Instances:
        num_stages, num_proposals, _ = cls_prob.shape
        class_idx = np.full((num_stages, num_proposals), -1, np.int64)
        weight = np.zeros((num_stages, num_proposals), np.float32)
        for s in range(num_stages):
            scores = (cls_prob[s].numpy()[:, 1:], integrity[s].numpy()[:, 1:])
            found = self.mine_stage(s, *scores, present.tolist(), iou.numpy(), containment.numpy())
            for i, (c, w) in found.items():
                class_idx[s, i], weight[s, i] = c, w
        return Instances(torch.from_numpy(class_idx), torch.from_numpy(weight))

    def mine_stage(
        self,
        stage: int,
        cls_prob: np.ndarray,
        integrity: np.ndarray,
        present: Iterable[int],
        iou: np.ndarray,
        containment: np.ndarray,
    ) -> Found:
        """Instances of one stage from scores (P, C) without the background, before sampling."""
        num = len(cls_prob)
        t_nms = np.float32(self.cls_thresh + self.thresh_step * stage)
        t_con = np.float32(self.containment_thresh)
        over = [
            sum(containment[i, j] > t_con for j in range(num)) >= self.oversized_fraction * num
            for i in range(num)
        ]
        score = cls_prob * integrity
        found: Found = {}
        for c in present:
            ranking = score[:, c] if self.labels == "mist" else cls_prob[:, c]
            order = sorted(range(num), key=lambda i, r=ranking: (-r[i], i))
            kept: list[int] = []
            for seed in order[: math.ceil(self.seed_fraction * num)]:
                if all(iou[seed, other] < t_nms for other in kept):
                    kept.append(seed)
            chosen = set()
            for seed in kept:
                if self.labels == "mist":
                    chosen.add(seed)
                    continue
                best = None
                for i in range(num):
                    if (
                        containment[i, seed] > t_con
                        and not over[i]
                        and (best is None or integrity[i, c] > integrity[best, c])
                    ):
                        best = i
                if best is not None:
                    chosen.add(best)
            for i in sorted(chosen):
                if i not in found or score[i, c] > found[i][1]:
                    found[i] = (c, score[i, c])
        return found

    def assign(self, instances: Instances, iou: Tensor, containment: Tensor) -> Targets:
        rows = []
        for s, (classes, weights) in enumerate(
            zip(instances.class_idx.tolist(), instances.weight.numpy(), strict=True)
        ):
            found = {i: (c, weights[i]) for i, c in enumerate(classes) if c >= 0}
            rows.append(self.assign_stage(s, found, iou.numpy()))
        column, weight, integrity_target = map(np.stack, zip(*rows, strict=True))
        return Targets(*map(torch.from_numpy, (column, weight, integrity_target)))

    def assign_stage(
        self, stage: int, found: Found, iou: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Column, weight and integrity target of every proposal."""
        num = len(iou)
        column = np.full(num, -1)
        weight, integrity_target = np.zeros((2, num), np.float32)
        for i in range(num):
            nearest, overlap = None, 0.0
            for instance in sorted(found):
                if iou[i, instance] > overlap:
                    nearest, overlap = instance, iou[i, instance]
            if nearest is None:
                continue
            weight[i] = found[nearest][1]
            column[i] = found[nearest][0] + 1
            if overlap < np.float32(self.cls_thresh + self.thresh_step * stage):
                column[i] = 0
            if overlap > np.float32(self.iou_thresh + self.thresh_step * stage):
                integrity_target[i] = 1
        return column, weight, integrity_target
