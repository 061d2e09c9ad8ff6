"""The losses of an image: the MIL branch, its clusters, and every refinement stage."""

from __future__ import annotations

from collections import defaultdict
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
from lib.structures import Clusters, Sample, Scores


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


@dataclass(frozen=True)
class CIMCriterion:
    """The losses of one image, by name and unweighted: the caller weighs and sums them."""

    miner: CIMMiner
    """Makes the targets of the refinement stages."""
    first_stage_weight: float = 3.0
    """Times the first stage's weights: its teacher, the MIL branch, gives small scores."""
    by_stage: bool = False
    """Gives the refinement losses of every stage, (S,), instead of their sum."""

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
            Scalars `bag`, `pcl` and, with stages, `refine_bag`, `refine_cls`, `refine_integrity`.
        """
        labels = sample.image_labels
        losses = {
            "bag": bag_loss(scores.cls_prob, scores.det_prob, labels),
            "pcl": pcl_loss(scores.cls_prob, sample.cluster_id, sample.cluster_column),
        }
        if not len(scores.refine_cls_prob):
            return losses

        clusters = Clusters(sample.cluster_id, sample.cluster_column)
        targets = self.miner(
            *teachers(scores), sample.present, iou, containment, generator, clusters
        )
        refined = defaultdict(list)
        for stage, cls_prob in enumerate(scores.refine_cls_prob):
            integrity_prob = scores.refine_integrity_prob[stage]
            column, weight = targets.column[stage], targets.weight[stage]
            if stage == 0:
                weight = self.first_stage_weight * weight
            bag = refine_bag_loss(cls_prob, integrity_prob, column, weight, labels)
            integrity = refine_integrity_loss(
                integrity_prob, column, weight, targets.integrity_target[stage]
            )
            refined["refine_bag"].append(bag)
            refined["refine_cls"].append(refine_cls_loss(cls_prob, column, weight))
            refined["refine_integrity"].append(integrity)
        by_stage = {name: torch.stack(values) for name, values in refined.items()}  # (S,) each
        return losses | (by_stage if self.by_stage else {n: v.sum() for n, v in by_stage.items()})
