"""The losses of an image: the MIL branch, its clusters, and every refinement stage."""

from __future__ import annotations

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


def score_image(
    model: nn.Module, sample: Sample, generator: torch.Generator
) -> tuple[Scores, Sample, Tensor, Tensor, torch.Generator]:
    """Runs the network on an image; returns the arguments of a CIMCriterion."""
    scores = model(sample.image[None], sample.boxes, sample.roi_masks)
    return criterion_arguments(scores, sample, generator)


def criterion_arguments(
    scores: Scores, sample: Sample, generator: torch.Generator
) -> tuple[Scores, Sample, Tensor, Tensor, torch.Generator]:
    """Adds the overlaps of the proposals to the scores of an image."""
    iou, containment = overlaps(sample.membership, sample.areas, sample.num_pixels)
    return scores, sample, iou, containment, generator


class CIMCriterion:
    """The losses of one image, by name and unweighted: the caller weighs and sums them.

    Args:
        miner: makes the targets of the refinement stages.
        first_stage_weight: times the weights of the first stage's targets; its teacher, the MIL
            branch, gives small scores.
        by_stage: losses of the refinement are (S,), one for each stage, instead of their sum.
    """

    def __init__(
        self, miner: CIMMiner, first_stage_weight: float = 3.0, by_stage: bool = False
    ) -> None:
        self.miner = miner
        self.first_stage_weight = first_stage_weight
        self.by_stage = by_stage

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
        of_stages = {"refine_bag": bags, "refine_cls": classes, "refine_iou": integrities}
        for name, values in of_stages.items():
            losses[name] = torch.stack(values) if self.by_stage else torch.stack(values).sum()
        return losses
