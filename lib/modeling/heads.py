"""The heads, and Complete Instances Mining: which proposals are whole objects (paper, section 3).

The MIL branch scores proposals from image-level labels. Every refinement stage learns from labels
that the branch before it, its teacher, gives: seeds are the teacher's most confident proposals of a
class, and of the proposals that contain a seed the one with the highest integrity is the instance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from lib.modeling.cluster_labels import cluster_instances
from lib.structures import Clusters, Instances, Scores, Targets


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
        self.refine_iou = nn.ModuleList(  # the integrity branch, under its published name
            nn.Linear(in_features, columns) for _ in range(num_stages if integrity else 0)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Scores:
        """Scores the proposals of one image from their features (P, D)."""
        cls_prob = self.classifier(features).softmax(dim=1)  # (P, C+1), over classes
        det_prob = self.detector(features).softmax(dim=0)  # (P, C+1), over proposals
        refine_cls_prob = [head(features).softmax(dim=1) for head in self.refine_cls]
        refine_integrity_prob = [head(features).sigmoid() for head in self.refine_iou]
        if not self.refine_iou:
            refine_integrity_prob = [torch.ones_like(prob) for prob in refine_cls_prob]
        return Scores(
            cls_prob,
            det_prob,
            # (S, P, C+1); there may be no stage, and nothing to stack.
            refine_cls_prob=torch.stack([cls_prob, *refine_cls_prob])[1:],
            refine_integrity_prob=torch.stack([cls_prob, *refine_integrity_prob])[1:],
        )


def teachers(scores: Scores) -> tuple[Tensor, Tensor]:
    """Scores that every stage learns from: those of the MIL branch, then of the stage before it.

    Returns:
        cls_prob and integrity_prob, both (S, P, C+1) without gradient. The integrity of the first
        teacher is det_prob.
    """
    cls_prob = torch.cat([scores.cls_prob[None], scores.refine_cls_prob])[:-1]
    integrity_prob = torch.cat([scores.det_prob[None], scores.refine_integrity_prob])[:-1]
    return cls_prob.detach(), integrity_prob.detach()


@dataclass(frozen=True)
class CIMMiner:
    """Complete Instances Mining (paper, section 3.3): the training targets of all stages.

    This is the section `mining` of a configuration.
    """

    labels: Literal["cim", "mist", "clusters"] = "cim"
    """`mist`: the seeds, ranked by score, are the instances themselves (ablation). `clusters`: see
    lib/modeling/cluster_labels.py."""
    complete_by: Literal["integrity", "cls"] = "integrity"
    """Teacher's score that chooses among the proposals that contain a seed (`cls`: ablation)."""
    seed_fraction: float = 0.1
    """p: this fraction of all proposals are seeds of a class before suppression."""
    containment_thresh: float = 0.85
    """i contains j when more than this fraction of j lies in i."""
    oversized_fraction: float = 0.9
    """A proposal that contains this fraction of all proposals cannot be an instance."""
    cls_thresh: float = 0.25
    """First stage: IoU of suppression among seeds, and of a foreground proposal's instance."""
    iou_thresh: float = 0.5
    """First stage: above this IoU with its instance a proposal counts as complete."""
    thresh_step: float = 0.1
    """Added to both thresholds at every further stage (cascade)."""
    anti_noise: bool = True
    """Trains on a weighted sample of the instances."""
    oversized_background: bool = False
    """Labels oversized proposals background (meant, but not done, in the published code)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and not 0 <= value <= 1:
                raise ValueError(f"{field.name}: expected a number from 0 to 1, got {value}")

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
        """Mines instances, samples among them against noise, and labels all proposals by them.

        Args:
            cls_prob: (S, P, C+1), class probabilities of every stage's teacher.
            integrity_prob: (S, P, C+1), their integrity; det_prob for the first.
            present: (N,) int64, the classes of the image, 0..C-1 ascending.
            iou: (P, P).
            containment: (P, P), [i, j] = |i & j| / |j|.
            generator: draws the samples; not needed without `anti_noise`.
            clusters: of the image, for `labels: clusters`.

        Returns:
            Targets without any label where P or N is 0.

        Raises:
            ValueError: `anti_noise` without a generator, `labels: clusters` without clusters.
        """
        instances = self.mine(cls_prob, integrity_prob, present, iou, containment, clusters)
        if self.anti_noise:
            instances = anti_noise_sample(instances, generator)
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
        """Finds the complete instances of every stage and present class; arguments as above."""
        if self.labels == "clusters":
            return cluster_instances(cls_prob, iou, clusters)
        class_idx = present.new_full(cls_prob.shape[:2], -1)  # (S, P)
        weight = cls_prob.new_zeros(cls_prob.shape[:2])
        # [i, j]: i contains j and may be an instance.
        completes = containment > self.containment_thresh
        completes &= ~self.oversized(containment)[:, None]
        for stage in range(len(cls_prob)):
            for c in present.tolist():
                of_cls = cls_prob[stage, :, c + 1]  # (P,), column 0 is the background
                of_integrity = integrity_prob[stage, :, c + 1]
                score = of_cls * of_integrity
                if self.labels == "mist":
                    found = self._seeds(score, iou, stage)
                else:
                    seeds = self._seeds(of_cls, iou, stage)
                    by = of_integrity if self.complete_by == "integrity" else of_cls
                    found = _complete(seeds, by, completes)
                # Where several classes claim a proposal the highest score wins, then the first.
                is_free = class_idx[stage, found] < 0
                claimed = found[is_free | (score[found] > weight[stage, found])]
                class_idx[stage, claimed] = c
                weight[stage, claimed] = score[claimed]
        return Instances(class_idx, weight)

    @torch.no_grad()
    def assign(self, instances: Instances, iou: Tensor, containment: Tensor) -> Targets:
        """Gives every proposal the label and weight of the instance that it overlaps most.

        Without any overlap it gets no label, below `cls_thresh` it is background. Of equal
        overlaps the first instance counts.
        """
        column = torch.full_like(instances.class_idx, -1)  # (S, P)
        weight, integrity_target = (torch.zeros_like(instances.weight) for _ in range(2))
        for stage, class_idx in enumerate(instances.class_idx):
            found = (class_idx >= 0).nonzero()[:, 0]  # (M,)
            if not len(found):
                continue
            overlap, nearest = iou[found].max(dim=0)  # (M, P) to (P,)
            nearest = found[nearest]
            is_labelled = overlap > 0
            is_background = overlap < self.cls_thresh + self.thresh_step * stage
            if self.oversized_background:  # PARITY: off, as in what the published code really does
                is_background |= self.oversized(containment)
            label = (class_idx[nearest] + 1).masked_fill(is_background, 0)
            column[stage] = label.where(is_labelled, -1)
            weight[stage] = instances.weight[stage, nearest].where(is_labelled, 0.0)
            integrity_target[stage] = (overlap > self.iou_thresh + self.thresh_step * stage).float()
        return Targets(column, weight, integrity_target)

    def oversized(self, containment: Tensor) -> Tensor:
        """(P,) bool: proposals that contain nearly all others, from containment (P, P)."""
        num_contained = (containment > self.containment_thresh).sum(dim=1)
        return num_contained >= self.oversized_fraction * len(containment)

    def _seeds(self, ranking: Tensor, iou: Tensor, stage: int) -> Tensor:
        """(K,) int64: the most confident proposals after suppression on mask IoU, best first."""
        num_seeds = math.ceil(self.seed_fraction * len(ranking))
        best = ranking.argsort(descending=True, stable=True)[:num_seeds]
        suppresses = iou[best][:, best] >= self.cls_thresh + self.thresh_step * stage
        return best[_greedy_nms(suppresses)]


def _greedy_nms(suppresses: Tensor) -> list[int]:
    """Items, in order, that no kept item before them suppresses, from (K, K) bool."""
    kept: list[int] = []
    for item, by in enumerate(suppresses.tolist()):
        if not any(by[before] for before in kept):
            kept.append(item)
    return kept


def _complete(seeds: Tensor, integrity: Tensor, completes: Tensor) -> Tensor:
    """For every seed (K,) the proposal of highest integrity (P,) that completes it, if any.

    Args:
        completes: (P, P) bool, [i, j]: i contains j and may be an instance.

    Returns:
        (M,) int64 ascending, each proposal once. Of equal integrities the first proposal counts.
    """
    if not len(seeds):
        return seeds
    highest, proposal = integrity[:, None].where(completes[:, seeds], -1).max(dim=0)  # (K,)
    return proposal[highest >= 0].unique()


@torch.no_grad()
def anti_noise_sample(instances: Instances, generator: torch.Generator | None) -> Instances:
    """Draws among the n instances of a class n times, by weight; those never drawn are dropped.

    With replacement, separately for every class of every stage. A weight that is negative or not
    finite counts as 0; where a class has no other weights, its instances are equally likely.
    """
    if generator is None:
        raise ValueError("anti-noise sampling draws from a generator, got None")
    weight = instances.weight.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    draw = torch.rand(weight.shape, generator=generator, device=generator.device)
    draw = draw.to(weight.device).double().clamp(1e-6, 1 - 1e-6)  # rounding reaches no weight of 0
    is_drawn = torch.zeros_like(weight, dtype=torch.bool)
    for stage, class_idx in enumerate(instances.class_idx):
        for c in class_idx[class_idx >= 0].unique().tolist():
            members = (class_idx == c).nonzero()[:, 0]  # (n,)
            chance = weight[stage, members]
            if not chance.any():
                chance = torch.ones_like(chance)
            end = (chance / chance.sum()).cumsum(dim=0)  # member k is drawn from end[k-1]..end[k]
            drawn = torch.searchsorted(end, draw[stage, members], right=True)
            is_drawn[stage, members[drawn.clamp(max=len(members) - 1)]] = True
    return Instances(instances.class_idx.where(is_drawn, -1), instances.weight.where(is_drawn, 0.0))
