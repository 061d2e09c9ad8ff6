"""The losses of an image: the MIL branch, its clusters, and every refinement stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.modeling.heads import CIMMiner, teachers
from lib.modeling.losses import (
    bag_loss,
    pcl_loss,
    refine_bag_loss,
    refine_cls_loss,
    refine_integrity_loss,
)
from lib.proposals.overlaps import overlaps
from lib.structures import Sample, Scores


@dataclass(frozen=True)
class CIMLosses:
    """The losses of a network on one image, for a Trainer."""

    criterion: Callable[..., dict[str, Tensor]]
    """(scores, sample, iou, containment, generator) -> unweighted losses by name."""

    def __call__(
        self, model: nn.Module, sample: Sample, generator: torch.Generator
    ) -> dict[str, Tensor]:
        scores = model(sample.image[None], sample.boxes, sample.roi_masks)
        return self.from_scores(scores, sample, generator)

    def from_scores(
        self, scores: Scores, sample: Sample, generator: torch.Generator
    ) -> dict[str, Tensor]:
        iou, containment = overlaps(sample.membership, sample.areas, sample.num_pixels)
        return self.criterion(scores, sample, iou, containment, generator)


class CIMCriterion:
    """The losses of one image, by name and unweighted: the caller weighs and sums them.

    Args:
        miner: makes the targets of the refinement stages.
        first_stage_weight: times the weights of the first stage's targets; its teacher, the MIL
            branch, gives small scores.
    """

    def __init__(self, miner: CIMMiner, first_stage_weight: float = 3.0) -> None:
        self.miner = miner
        self.first_stage_weight = first_stage_weight

    def __call__(
        self,
        scores: Scores,
        sample: Sample,
        iou: Tensor,
        containment: Tensor,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Computes the losses of one image.

        Args:
            scores: of its P proposals.
            sample: the image's labels and clusters.
            iou: (P, P).
            containment: (P, P), [i, j] = |i & j| / |j|.
            generator: draws the anti-noise samples.

        Returns:
            Scalars `bag`, `pcl` (with the factor 12 of its definition) and, if there are
            refinement stages, `refine_bag`, `refine_cls`, `refine_iou`, summed over the stages.
        """
        losses = self.by_stage(scores, sample, iou, containment, generator)
        return {name: value.sum() for name, value in losses.items()}

    def by_stage(
        self,
        scores: Scores,
        sample: Sample,
        iou: Tensor,
        containment: Tensor,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The same losses before they are summed: those of the refinement are (S,)."""
        labels = sample.image_labels
        losses = {
            "bag": bag_loss(scores.cls_prob, scores.det_prob, labels),
            "pcl": pcl_loss(scores.cls_prob, sample.cluster_number, sample.cluster_column),
        }
        if not len(scores.refine_cls_prob):
            return losses

        targets = self.miner(*teachers(scores), sample.present, iou, containment, generator)
        bags, classes, integrities = [], [], []
        for stage, cls_prob in enumerate(scores.refine_cls_prob):
            integrity_prob = scores.refine_integrity_prob[stage]
            column, weight = targets.column[stage], targets.weight[stage]
            if stage == 0:
                weight = self.first_stage_weight * weight
            complete = targets.integrity_target[stage]
            bags.append(refine_bag_loss(cls_prob, integrity_prob, column, weight, labels))
            classes.append(refine_cls_loss(cls_prob, column, weight))
            integrities.append(refine_integrity_loss(integrity_prob, column, weight, complete))
        losses["refine_bag"] = torch.stack(bags)
        losses["refine_cls"] = torch.stack(classes)
        losses["refine_iou"] = torch.stack(integrities)
        return losses
