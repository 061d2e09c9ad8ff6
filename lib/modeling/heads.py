"""The heads, and Complete Instances Mining: which proposals are whole objects (paper, section 3).

The MIL branch scores proposals from image-level labels. Every refinement stage learns from labels
that the branch before it gives, its teacher: seeds are the teacher's most confident proposals of a
class, and the proposal that contains a seed with the highest integrity becomes the instance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lib.structures import Instances, Scores, Targets


class Heads(nn.Module):
    """MIL branch and S refinement stages on proposal features (`cls_iou_model` as published).

    Args:
        in_features: D, the length of a proposal's feature vector.
        num_classes: C, without the background.
        num_stages: S, refinement stages; 0 leaves the MIL branch alone.
        integrity: False leaves the integrity branch out: all integrity is 1 (ablation).
    """

    def __init__(
        self, in_features: int, num_classes: int, num_stages: int = 3, integrity: bool = True
    ) -> None:
        super().__init__()
        columns = num_classes + 1
        self.classifier = nn.Linear(in_features, columns)
        self.detector = nn.Linear(in_features, columns)
        self.refine_cls = nn.ModuleList(nn.Linear(in_features, columns) for _ in range(num_stages))
        self.refine_iou = nn.ModuleList(
            nn.Linear(in_features, columns) for _ in range(num_stages if integrity else 0)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Scores:
        """Scores the proposals of one image from their features (P, D) float32."""
        cls_logits = self.classifier(features)  # (P, C+1)
        none = cls_logits.new_zeros((0, *cls_logits.shape))  # (0, P, C+1): there may be no stage
        refine_cls = [head(features).softmax(dim=1)[None] for head in self.refine_cls]
        refine_iou = [head(features).sigmoid()[None] for head in self.refine_iou]
        if not self.refine_iou:
            refine_iou = [torch.ones_like(probability) for probability in refine_cls]
        return Scores(
            cls_prob=cls_logits.softmax(dim=1),
            det_prob=self.detector(features).softmax(dim=0),
            refine_cls=torch.cat([none, *refine_cls]),  # (S, P, C+1)
            refine_iou=torch.cat([none, *refine_iou]),
        )


def teachers(scores: Scores) -> tuple[Tensor, Tensor]:
    """What every stage learns from: the MIL branch first, then the stage before it.

    Returns:
        cls_prob and integrity, both (S, P, C+1) without gradient. The integrity of the first
        teacher is det_prob.
    """
    cls_prob = torch.cat([scores.cls_prob[None], scores.refine_cls])[:-1]
    integrity = torch.cat([scores.det_prob[None], scores.refine_iou])[:-1]
    return cls_prob.detach(), integrity.detach()


@dataclass(frozen=True)
class CIMMiner:
    """Makes the training targets of all stages of an image at once, without gradient.

    Nothing here loops over proposals or pairs or, on CUDA, waits for the device.
    """

    labels: Literal["cim", "mist"] = "cim"
    """`mist`: the seeds, ranked by score, are the instances themselves (ablation)."""
    complete_by: Literal["integrity", "cls"] = "integrity"
    """Which of the teacher's scores chooses among the proposals that contain a seed."""
    seed_fraction: float = 0.1
    """p: of all proposals, these are the seeds of a class before suppression."""
    containment_thresh: float = 0.85
    """i contains j when more than this fraction of j lies in i."""
    oversized_fraction: float = 0.9
    """A proposal that contains this fraction of all proposals cannot be an instance."""
    cls_thresh: float = 0.25
    """First stage: IoU of suppression among seeds, and of a foreground proposal's instance."""
    iou_thresh: float = 0.5
    """First stage: above this IoU with its instance a proposal counts as complete."""
    thresh_step: float = 0.1
    """Added to both at every further stage."""
    anti_noise: bool = True
    oversized_background: bool = False
    """Calls labelled oversized proposals background; as published, this is not done."""

    @torch.no_grad()
    def __call__(
        self,
        cls_prob: Tensor,
        integrity: Tensor,
        present: Tensor,
        iou: Tensor,
        containment: Tensor,
        generator: torch.Generator | None = None,
    ) -> Targets:
        """Mines instances, samples among them against noise, and labels all proposals by them.

        Args:
            cls_prob: (S, P, C+1), class probabilities of every stage's teacher.
            integrity: (S, P, C+1), their integrity; det_prob for the first.
            present: (N,) int64, the classes of the image, 0..C-1 ascending.
            iou: (P, P).
            containment: (P, P), [i, j] = |i & j| / |j|.
            generator: draws the samples; not needed without `anti_noise`.

        Returns:
            Targets without any label where P or N is 0.
        """
        instances = self.mine(cls_prob, integrity, present, iou, containment)
        if self.anti_noise:
            if generator is None:
                raise ValueError("anti-noise sampling draws from a generator, got None")
            instances = anti_noise_sample(instances, cls_prob.shape[2] - 1, generator)
        return self.assign(instances, iou, containment)

    @torch.no_grad()
    def mine(
        self, cls_prob: Tensor, integrity: Tensor, present: Tensor, iou: Tensor, containment: Tensor
    ) -> Instances:
        """Finds the complete instances of every stage and present class; arguments as above."""
        num_stages, num_proposals, _ = cls_prob.shape
        if num_proposals == 0 or len(present) == 0:
            class_idx = present.new_full((num_stages, num_proposals), -1)
            return Instances(class_idx, weight=cls_prob.new_zeros(class_idx.shape))
        columns = (present + 1)[:, None].expand(num_stages, -1, num_proposals)
        cls_prob = cls_prob.transpose(1, 2).gather(1, columns)  # (S, N, P)
        integrity = integrity.transpose(1, 2).gather(1, columns)
        score = cls_prob * integrity

        ranking = score if self.labels == "mist" else cls_prob
        num_seeds = math.ceil(self.seed_fraction * num_proposals)
        seeds = _highest(ranking, num_seeds)  # (S, N, K)
        thresh = self._thresh(self.cls_thresh, num_stages, iou)[:, :, None, None]
        pairs = seeds.int()  # which is faster, for P up to 46,340
        pairs = pairs[..., :, None] * num_proposals + pairs[..., None, :]  # (S, N, K, K)
        overlap = iou.reshape(-1).index_select(0, pairs.reshape(-1)).view_as(pairs)
        kept = greedy_nms(torch.ge(overlap, thresh, out=torch.empty_like(overlap)))
        if self.labels == "mist":
            found = torch.zeros_like(score, dtype=torch.bool).scatter_(2, seeds, kept)
        else:
            by = integrity if self.complete_by == "integrity" else cls_prob
            found = self._complete(seeds, kept, by, containment)

        # A proposal that several classes claim goes to the highest score, of equals the first.
        weight, claimed_by = score.where(found, -torch.inf).max(dim=1)  # (S, P)
        is_instance = found.any(dim=1)
        return Instances(
            class_idx=present[claimed_by].where(is_instance, -1),
            weight=weight.where(is_instance, 0.0),
        )

    @torch.no_grad()
    def assign(self, instances: Instances, iou: Tensor, containment: Tensor) -> Targets:
        """Gives every proposal the label and weight of the instance that it overlaps most.

        Without any overlap it gets no label, below `cls_thresh` it is background. Of equal
        overlaps the first instance counts.
        """
        is_instance = instances.class_idx >= 0  # (S, P)
        num_stages, num_proposals = is_instance.shape
        if num_proposals == 0:
            return Targets(instances.class_idx, instances.weight, instances.weight)
        most = _size(is_instance.sum(dim=1).amax(), at_most=num_proposals)
        first = is_instance.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        first = first[:, : max(most, 1)]  # (S, M): the instances, ascending, then some others
        first = first.where(is_instance.gather(1, first), first[:, :1])
        # iou is symmetric: its rows, which lie together in memory, are as good as its columns.
        overlap = iou.index_select(0, first.reshape(-1)).view(*first.shape, -1)  # (S, M, P)
        overlap, nearest = overlap.max(dim=1)  # (S, P)
        nearest = first.gather(1, nearest)

        overlap = overlap * is_instance.any(dim=1, keepdim=True)
        is_labelled = overlap > 0
        is_background = overlap < self._thresh(self.cls_thresh, num_stages, iou)
        if self.oversized_background:  # PARITY: off, as in what the published code really does
            is_background |= self.oversized(containment)
        column = (instances.class_idx.gather(1, nearest) + 1).masked_fill(is_background, 0)
        return Targets(
            column=column.where(is_labelled, -1),
            weight=instances.weight.gather(1, nearest).where(is_labelled, 0.0),
            iou_target=(overlap > self._thresh(self.iou_thresh, num_stages, iou)).to(iou.dtype),
        )

    def oversized(self, containment: Tensor) -> Tensor:
        """(P,) bool: proposals that contain nearly all others, from containment (P, P)."""
        return self._contains_most(self._outside(containment))

    def _complete(
        self, seeds: Tensor, kept: Tensor, integrity: Tensor, containment: Tensor
    ) -> Tensor:
        """For every kept seed the most integral proposal that contains it: (S, N, P) bool.

        Args:
            integrity: (S, N, P), or any other score that is to choose.
        """
        count = _size(kept.sum(), at_most=kept.numel())
        place = kept.nonzero_static(size=count, fill_value=-1)  # (M, 3), -1 beyond the last
        is_seed = place[:, 0] >= 0
        stage, row, rank = place.clamp(min=0).unbind(dim=1)
        outside = self._outside(containment)
        # What may be chosen keeps its integrity, all else falls below zero.
        value = (integrity - 2 * self._contains_most(outside)).flatten(0, 1)  # (S * N, P)
        value = value.index_select(0, stage * integrity.shape[1] + row)  # (M, P)
        value.sub_(outside.index_select(0, seeds[stage, row, rank]), alpha=2)
        proposal = _first_highest(value)  # (M,)
        best = value.gather(1, proposal[:, None]).squeeze(1)
        is_found = (best >= 0) & is_seed
        # Added up: a proposal may be found twice, or be what a place beyond the last points at.
        found = torch.zeros(integrity.shape, dtype=torch.int32, device=integrity.device)
        place = (stage * integrity.shape[1] + row) * integrity.shape[2] + proposal
        found.view(-1).scatter_add_(0, place, is_found.int())
        return found > 0

    def _outside(self, containment: Tensor) -> Tensor:
        """(P, P) in {0, 1}, [j, i]: i does not contain j.

        This way round, since what `overlaps` gives lies in memory like that. Not bool, which is
        slower to make and to sum.
        """
        contained = containment.T
        return torch.le(contained, self.containment_thresh, out=torch.empty_like(contained))

    def _contains_most(self, outside: Tensor) -> Tensor:
        num_proposals = len(outside)
        return num_proposals - outside.sum(dim=0) >= self.oversized_fraction * num_proposals

    def _thresh(self, first: float, num_stages: int, like: Tensor) -> Tensor:
        """(S, 1): a threshold of the first stage, and what it grows to."""
        stage = torch.arange(num_stages, dtype=torch.float64, device=like.device)
        return (first + self.thresh_step * stage).to(like.dtype)[:, None]


def greedy_nms(overlaps: Tensor) -> Tensor:
    """Greedy non-maximum suppression of many lists at once.

    An item stays when no kept item before it overlaps it. Starting from all, this rule is applied
    to all items together until nothing changes; after k rounds the first k items are certainly
    right, so that the result is that of going through the list.

    Args:
        overlaps: (..., K, K) in {0, 1}, whether two items are too close; items in descending
            order. Fastest in float32.

    Returns:
        (..., K) bool.
    """
    suppresses = overlaps.float().triu(diagonal=1)  # [i, j]: i comes first and overlaps j
    kept = torch.ones_like(suppresses[..., :1, :])  # (..., 1, K)
    for _ in range(overlaps.shape[-1]):
        before, kept = kept, (kept @ suppresses).logical_not_()
        if not kept.is_cuda and torch.equal(kept, before):
            break
    return kept.squeeze(-2).bool()


@torch.no_grad()
def anti_noise_sample(
    instances: Instances, num_classes: int, generator: torch.Generator
) -> Instances:
    """Draws among the n instances of a class n times, by weight; what is never drawn is dropped.

    With replacement, for every class of every stage on its own. A weight that is negative or not
    finite counts as 0; where a class has no other weights, its instances are equally likely.

    Args:
        num_classes: C.
        generator: of any device.
    """
    group = instances.class_idx + 1  # (S, P); group 0, the others, draws among itself
    weight = instances.weight.double()
    weight = weight.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    zero = weight.new_zeros((len(group), num_classes + 1))
    count = zero.scatter_add(1, group, torch.ones_like(weight))  # (S, C+1)
    total = zero.scatter_add(1, group, weight)
    chance = weight / total.gather(1, group)
    chance = chance.where(total.gather(1, group) > 0, 1 / count.gather(1, group))  # (S, P)

    # Laid end to end, sorted by group, every group is an interval of length 1. One draw is made
    # for each member; the margin keeps rounding from leading out of the interval.
    order = group.argsort(dim=1, stable=True)
    ends = chance.gather(1, order).cumsum(dim=1)
    start = ((count > 0).cumsum(dim=1) - 1).gather(1, group)
    draw = torch.rand(group.shape, generator=generator, device=generator.device)
    draw = draw.to(ends.device, non_blocking=True).double().clamp(1e-6, 1 - 1e-6)
    # Only members of a class need their draw looked up; they come last.
    most = _size((group > 0).sum(dim=1).amax(), at_most=group.shape[1])
    point = (start + draw).gather(1, order[:, group.shape[1] - most :])
    drawn = torch.searchsorted(ends, point, right=True).clamp(max=group.shape[1] - 1)
    is_drawn = torch.zeros_like(group, dtype=torch.bool).scatter_(1, order.gather(1, drawn), True)
    return Instances(
        class_idx=instances.class_idx.where(is_drawn, -1),
        weight=instances.weight.where(is_drawn, 0.0),
    )


def _highest(values: Tensor, count: int) -> Tensor:
    """Indices (..., count) of the highest values (..., P), which are not negative, descending.

    Of equal values the first come first. That is a stable sort, but many times faster: topk alone
    leaves equals in any order, so that it is given keys that combine value and index.
    """
    num = values.shape[-1]
    index = torch.arange(num, device=values.device)
    bits = values.float().view(torch.int32).long()  # ordered like the values
    return (bits * num - index).topk(count, dim=-1).indices


def _first_highest(values: Tensor) -> Tensor:
    """Index of the highest value of every row of (M, P), of equal ones the first: (M,) int64."""
    if values.device.type == "cpu":  # torch's own goes value by value: ten times as long
        return torch.from_numpy(values.numpy().argmax(axis=1))
    return values.argmax(dim=1)


def _size(count: Tensor, at_most: int) -> int:
    """The count, or where reading it would wait for the device, what it is at most."""
    return at_most if count.is_cuda else int(count)
