"""Which losses an image gives: the MIL branch, its clusters, and every refinement stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.modeling.heads import CIMMiner, teachers
from lib.modeling.losses import (
    bag_loss,
    pcl_loss,
    refine_bag_loss,
    refine_cls_loss,
    refine_iou_loss,
)
from lib.modeling.model_builder import CIMNet
from lib.proposals.overlaps import overlaps
from lib.structures import Sample, Scores


@dataclass(frozen=True)
class CIMLosses:
    """From the network and one image to its losses, as a Trainer wants it."""

    criterion: Callable[..., dict[str, Tensor]]
    """(scores, sample, iou, containment, generator) -> unweighted losses by name."""

    def __call__(
        self, model: nn.Module, sample: Sample, generator: torch.Generator
    ) -> dict[str, Tensor]:
        scores = model(sample.image[None], sample.boxes, sample.roi_masks)
        return self._of(scores, sample, generator)

    def together(
        self,
        model: CIMNet,
        samples: Sequence[Sample],
        generators: Sequence[torch.Generator],
    ) -> list[dict[str, Tensor]]:
        """The losses of several images, whose proposals pass MaskFuse together."""
        scores = model.score_views(samples)
        return list(map(self._of, scores, samples, generators))

    def _of(self, scores: Scores, sample: Sample, generator: torch.Generator) -> dict[str, Tensor]:
        iou, containment = overlaps(sample.membership, sample.areas, sample.num_pixels)
        return self.criterion(scores, sample, iou, containment, generator)


class CIMCriterion:
    """The losses of one image, by name and unweighted: `total` is for the caller to sum.

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
        num_stages = len(scores.refine_cls)
        if num_stages == 0:
            return losses

        present = labels.nonzero()[:, 0] if sample.present is None else sample.present
        targets = self.miner(*teachers(scores), present, iou, containment, generator)
        bags, classes, integrities = [], [], []
        for s in range(num_stages):
            cls_prob, integrity = scores.refine_cls[s], scores.refine_iou[s]
            column, weight = targets.column[s], targets.weight[s]
            if s == 0:
                weight = self.first_stage_weight * weight
            bags.append(refine_bag_loss(cls_prob, integrity, column, weight, labels))
            classes.append(refine_cls_loss(cls_prob, column, weight))
            integrities.append(refine_iou_loss(integrity, column, weight, targets.iou_target[s]))
        losses["refine_bag"] = torch.stack(bags)
        losses["refine_cls"] = torch.stack(classes)
        losses["refine_iou"] = torch.stack(integrities)
        return losses
