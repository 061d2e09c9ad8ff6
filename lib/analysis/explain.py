"""The steps of the method on one image as one figure with captions in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from lib.analysis.inspection import Inspection
from lib.analysis.mining import best_first
from lib.proposals.rle import masks_of
from lib.visualization.draw import (
    draw_clusters,
    draw_instances,
    draw_proposals,
    draw_responses,
    enlarge,
)
from lib.visualization.panels import captioned, contact_sheet

Panel = tuple[str, np.ndarray, str]
"""Title, picture, caption."""

OUTLINED = 40
"""Number of proposals that are drawn."""
FAINT = 0.1
"""Mined instances below this fraction of the highest weight are not drawn."""


def explain(
    seen: Inspection,
    class_names: Sequence[str],
    truth: Sequence[Mapping[str, Any]] | None = None,
    score_thresh: float = 0.3,
    columns: int | None = None,
    panel_width: int = 512,
) -> np.ndarray:
    """Draws every step that was taken, in the order of the method.

    Args:
        truth: true masks, `class_idx` and `segmentation` (compressed RLE) of each, if known.
        score_thresh: of the detections that are drawn.
        columns: panels side by side; None leaves the least space empty.
        panel_width: pixels of each.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    panels = [_image(seen, class_names), _proposals(seen)]
    if seen.responses is not None:
        panels.append(_responses(seen, class_names))
    if seen.peak_maps is not None:
        panels.append(_peak_maps(seen))
    if seen.clusters is not None:
        panels.append(_clusters(seen, class_names))
    if seen.instances is not None:
        stages = range(len(seen.instances.weight))
        panels += [_instances(seen, class_names, s) for s in stages]
    if seen.detections is not None:
        panels.append(_detections(seen, class_names, score_thresh))
    if truth is not None:
        masks = masks_of(truth, seen.record.size)
        classes = [entry["class_idx"] for entry in truth]
        picture = draw_instances(seen.image, masks, classes, None, class_names)
        panels.append(("True masks", picture, "For comparison only. Training never sees them."))
    tiles = [
        captioned(f"{number}  {title}", picture, text, panel_width)
        for number, (title, picture, text) in enumerate(panels, start=1)
    ]
    if columns is None:
        columns = min((5, 4, 3), key=lambda count: -len(tiles) % count)
    return contact_sheet(tiles, columns)


def _image(seen: Inspection, class_names: Sequence[str]) -> Panel:
    present = [class_names[c] for c in np.flatnonzero(seen.record.image_labels)]
    text = (
        f"What is known of it beside the pixels: {', '.join(present) or 'nothing'}. "
        "No boxes, no masks, no counts."
    )
    return "The image", enlarge(seen.image), text


def _proposals(seen: Inspection) -> Panel:
    count = len(seen.proposals)
    which = "All are" if count <= OUTLINED else f"The first {OUTLINED} are"
    text = (
        f"{count} candidate masks, made from the pixels alone. {which} outlined here. All that "
        "follows only chooses among them."
    )
    shown = np.arange(min(count, OUTLINED))
    return "Proposals", draw_proposals(seen.image, seen.proposals.regions, shown), text


def _responses(seen: Inspection, class_names: Sequence[str]) -> Panel:
    present = np.flatnonzero(seen.record.image_labels)
    maps = seen.responses[present]
    picture = draw_responses(seen.image, maps, present.tolist(), seen.peaks, class_names)
    text = (
        "A classifier that was trained on the labels alone responds where there is light. Its "
        f"peaks ({len(seen.peaks)} here, crosses) say roughly where objects are; the number is "
        "the response."
    )
    if seen.peaks.fallback.any():
        text += " No peak of some class was high enough, so its highest was taken."
    return "Response maps and peaks", picture, text


def _peak_maps(seen: Inspection) -> Panel:
    # Few pixels respond much more than all others; blur and square roots show all of them.
    blur = seen.peak_maps.shape[-1] / 100
    maps = np.array([np.sqrt(cv2.GaussianBlur(m, (0, 0), blur)) for m in seen.peak_maps])
    maps = maps.reshape(-1, *seen.peak_maps.shape[1:])
    text = (
        "Every peak traced back through the network to the pixels that it comes from: often the "
        "most telling part, not the whole object."
    )
    picture = draw_responses(seen.image, maps, seen.peaks.class_idx.tolist())
    return "What the peaks respond to", picture, text


def _clusters(seen: Inspection, class_names: Sequence[str]) -> Panel:
    number, column = np.asarray(seen.clusters.number), np.asarray(seen.clusters.column)
    count = len(np.unique(number[column > 0]))
    text = (
        "Around every peak, the proposals that agree with each other are grouped: "
        f"{count} {'group' if count == 1 else 'groups'} here, with the number of members. The "
        "first, rough hints for the training."
    )
    picture = draw_clusters(seen.image, seen.proposals.regions, seen.clusters, class_names)
    return "Clusters of proposals", picture, text


def _instances(seen: Inspection, class_names: Sequence[str], stage: int) -> Panel:
    mined, class_idx, weight = best_first(seen.instances, stage)
    strong = weight >= FAINT * weight.max(initial=0.0)
    masks = seen.proposals.regions.masks(mined[strong])
    picture = draw_instances(seen.image, masks, class_idx[strong], weight[strong], class_names)
    if stage == 0:
        text = (
            "Confident proposals are seeds, scored by the branch that learns from the labels; of "
            "the proposals that contain a seed the most complete becomes an instance."
        )
    else:
        text = f"The same from the scores of stage {stage}, with stricter thresholds."
    text += f" {len(mined)} instances with their weights"
    hidden = len(mined) - strong.sum()
    text += f"; {hidden} of little weight are not drawn." if hidden else "."
    return f"Instances mined for stage {stage + 1}", picture, text


def _detections(seen: Inspection, class_names: Sequence[str], score_thresh: float) -> Panel:
    found = seen.detections
    shown = np.flatnonzero(found.scores >= score_thresh)
    masks = seen.proposals.regions.masks(found.proposal_idx[shown])
    classes, scores = found.class_idx[shown], found.scores[shown]
    picture = draw_instances(seen.image, masks, classes, scores, class_names)
    text = (
        "The result, found without the labels: the mean score of all stages, scales and "
        f"mirrorings, without what overlaps a better one. {len(shown)} with a score of "
        f"{score_thresh:g} or more."
    )
    return "Detections", picture, text
