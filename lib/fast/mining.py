"""The miner for CUDA: all stages and classes at once, without waiting for the device.

The plain form loops over stages and classes and reads counts and indices from the device at every
step. Here the host knows all sizes beforehand.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import torch
from torch import Tensor

from lib.modeling.heads import CIMMiner
from lib.structures import Clusters, Instances, Targets


def fast_miner(miner: CIMMiner, device: torch.device | str) -> CIMMiner:
    """The form of the miner for a device: the plain one on CPUs, where it costs next to nothing."""
    return FastCIMMiner(**asdict(miner)) if torch.device(device).type == "cuda" else miner


class FastCIMMiner(CIMMiner):
    """Gives what CIMMiner gives, with the same draws."""

    @torch.no_grad()
    def __call__(
        self,
        cls_prob: Tensor,
        integrity_prob: Tensor,
        present: Tensor,
        iou: Tensor,
        containment: Tensor,
        generator: torch.Generator | None = None,
        clusters: Clusters | None = None,
    ) -> Targets:
        instances = self.mine(cls_prob, integrity_prob, present, iou, containment, clusters)
        if self.anti_noise:
            instances = anti_noise_sample(instances, cls_prob.shape[2] - 1, generator)
        return self.assign(instances, iou, containment)

    @torch.no_grad()
    def mine(
        self,
        cls_prob: Tensor,
        integrity_prob: Tensor,
        present: Tensor,
        iou: Tensor,
        containment: Tensor,
        clusters: Clusters | None = None,
    ) -> Instances:
        if self.labels == "clusters":
            return super().mine(cls_prob, integrity_prob, present, iou, containment, clusters)
        num_stages, num_proposals, _ = cls_prob.shape
        if num_proposals == 0 or len(present) == 0:
            class_idx = present.new_full((num_stages, num_proposals), -1)
            return Instances(class_idx, weight=cls_prob.new_zeros(class_idx.shape))
        columns = (present + 1)[:, None].expand(num_stages, -1, num_proposals)
        cls_prob = cls_prob.transpose(1, 2).gather(1, columns)  # (S, N, P)
        integrity = integrity_prob.transpose(1, 2).gather(1, columns)
        score = cls_prob * integrity

        ranking = score if self.labels == "mist" else cls_prob
        num_seeds = math.ceil(self.seed_fraction * num_proposals)
        seeds = ranking.argsort(dim=2, descending=True, stable=True)[..., :num_seeds]  # (S, N, K)
        overlap = iou[seeds[..., :, None], seeds[..., None, :]]  # (S, N, K, K)
        thresh = self._thresh(self.cls_thresh, num_stages, iou)[..., None, None]
        kept = greedy_nms(overlap >= thresh)
        if self.labels == "mist":
            found = torch.zeros_like(score, dtype=torch.bool).scatter_(2, seeds, kept)
        else:
            by = integrity if self.complete_by == "integrity" else cls_prob
            found = self._complete_all(seeds, kept, by, containment)

        # A proposal that several classes claim goes to the highest score, of equals the first.
        weight, claimed_by = score.where(found, -torch.inf).max(dim=1)  # (S, P)
        is_instance = found.any(dim=1)
        return Instances(
            class_idx=present[claimed_by].where(is_instance, -1),
            weight=weight.where(is_instance, 0.0),
        )

    @torch.no_grad()
    def assign(self, instances: Instances, iou: Tensor, containment: Tensor) -> Targets:
        is_instance = instances.class_idx >= 0  # (S, P)
        num_stages, num_proposals = is_instance.shape
        if num_proposals == 0:
            return Targets(instances.class_idx, instances.weight, instances.weight)
        # Overlaps with instances keep their value, those with other proposals fall below zero.
        overlap = iou - 2 * ~is_instance[:, :, None]  # (S, P, P), iou is symmetric
        overlap, nearest = overlap.max(dim=1)  # (S, P)
        is_labelled = overlap > 0
        is_background = overlap < self._thresh(self.cls_thresh, num_stages, iou)
        if self.oversized_background:
            is_background |= self.oversized(containment)
        column = (instances.class_idx.gather(1, nearest) + 1).masked_fill(is_background, 0)
        is_complete = overlap > self._thresh(self.iou_thresh, num_stages, iou)
        return Targets(
            column=column.where(is_labelled, -1),
            weight=instances.weight.gather(1, nearest).where(is_labelled, 0.0),
            integrity_target=is_complete.to(iou.dtype),
        )

    def _complete_all(
        self, seeds: Tensor, kept: Tensor, integrity: Tensor, containment: Tensor
    ) -> Tensor:
        """For every kept seed the most integral proposal that contains it: (S, N, P) bool.

        Args:
            seeds, kept: (S, N, K).
            integrity: (S, N, P), or any other score that is to choose.
        """
        completes = containment > self.containment_thresh
        completes &= ~self.oversized(containment)[:, None]
        may = completes.T[seeds.flatten(0, 1)]  # (S * N, K, P)
        highest, proposal = integrity.flatten(0, 1)[:, None].where(may, -1).max(dim=2)
        is_found = (highest >= 0) & kept.flatten(0, 1)  # (S * N, K)
        found = torch.zeros_like(integrity, dtype=torch.int32).flatten(0, 1)
        # Summed, because several seeds may point at one proposal, some of them without success.
        return found.scatter_add_(1, proposal, is_found.int()).view_as(integrity) > 0

    def _thresh(self, first: float, num_stages: int, like: Tensor) -> Tensor:
        """(S, 1): a threshold at every stage."""
        stage = torch.arange(num_stages, dtype=torch.float64, device=like.device)
        return (first + self.thresh_step * stage).to(like.dtype)[:, None]


def greedy_nms(overlaps: Tensor) -> Tensor:
    """Greedy non-maximum suppression of many lists at once.

    An item stays when no kept item before it overlaps it. Starting from all, this rule is applied
    to all items together; after k rounds the first k items are certainly right.

    Args:
        overlaps: (..., K, K) bool, whether two items are too close; items in descending order.

    Returns:
        (..., K) bool.
    """
    suppresses = overlaps.float().triu(diagonal=1)  # [i, j]: i comes first and overlaps j
    kept = torch.ones_like(suppresses[..., :1, :])  # (..., 1, K)
    for _ in range(overlaps.shape[-1]):
        kept = (kept @ suppresses).logical_not_()
    return kept.squeeze(-2).bool()


@torch.no_grad()
def anti_noise_sample(
    instances: Instances, num_classes: int, generator: torch.Generator | None
) -> Instances:
    """The plain anti_noise_sample for all classes of all stages at once."""
    if generator is None:
        raise ValueError("anti-noise sampling draws from a generator, got None")
    group = instances.class_idx + 1  # (S, P); group 0, the others, draws among itself
    weight = instances.weight.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    zero = weight.new_zeros((len(group), num_classes + 1))
    count = zero.scatter_add(1, group, torch.ones_like(weight))  # (S, C+1)
    total = zero.scatter_add(1, group, weight)
    chance = weight / total.gather(1, group)
    chance = chance.where(total.gather(1, group) > 0, 1 / count.gather(1, group))  # (S, P)

    # Laid end to end, sorted by group, every group is an interval of length 1, with one draw for
    # each member. The margin keeps rounding from leaving the interval.
    order = group.argsort(dim=1, stable=True)
    ends = chance.gather(1, order).cumsum(dim=1)
    start = ((count > 0).cumsum(dim=1) - 1).gather(1, group)
    draw = torch.rand(group.shape, generator=generator, device=generator.device)
    draw = draw.to(ends.device, non_blocking=True).double().clamp(1e-6, 1 - 1e-6)
    point = (start + draw).gather(1, order)
    drawn = torch.searchsorted(ends, point, right=True).clamp(max=group.shape[1] - 1)
    is_drawn = torch.zeros_like(group, dtype=torch.bool).scatter_(1, order.gather(1, drawn), True)
    return Instances(
        class_idx=instances.class_idx.where(is_drawn, -1),
        weight=instances.weight.where(is_drawn, 0.0),
    )
