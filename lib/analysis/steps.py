"""Losses of objects along a chain: proposals, PRM and clusters beside the true masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.analysis.instance_quality import GOOD_IOU, TIGHT_IOU, Truth, means
from lib.analysis.instances import Known
from lib.engine.checkpoint import load_checkpoint
from lib.structures import Clusters


def proposal_quality(truth: Truth) -> dict[str, np.ndarray]:
    """Of every object (G,): has it a proposal that is good, a tight one; IoU of its best one."""
    best = truth.iou.max(axis=0, initial=0.0)
    return {
        "objects with a good proposal": (best >= GOOD_IOU).astype(float),
        "objects with a tight proposal": (best >= TIGHT_IOU).astype(float),
        "IoU of the best proposal": best,
    }


def cluster_quality(truth: Truth, clusters: Clusters) -> dict[str, np.ndarray]:
    """Counts of right clusters of an image; good is an IoU above 0.5 with an object of the class.

    Returns:
        0 or 1 for every cluster: it has a good member; for every member: it is good; for every
        object (G,): some member is good for it.
    """
    number, column = np.asarray(clusters.number), np.asarray(clusters.column)
    good_clusters, good_members = [], []
    found = np.zeros(len(truth.class_idx))
    for k in np.unique(number[column > 0]):
        members = np.flatnonzero(number == k)
        of_class = truth.class_idx == column[members[0]] - 1
        good = (truth.iou[members] > GOOD_IOU) & of_class  # (M, G)
        good_clusters.append(good.any())
        good_members += good.any(axis=1).tolist()
        found[good.any(axis=0)] = 1
    return {
        "clusters with a good member": np.array(good_clusters, float),
        "members that are good": np.array(good_members, float),
        "objects with a good member": found,
    }


def analyse_steps(images: Sequence[Known], prm: Path | None = None) -> dict[str, float | None]:
    """Measures of all steps before training, means over a data set; None without any.

    Args:
        prm: the trained PRM, which notes its class mAP on the labels that it was trained on.

    Raises:
        CheckpointError: the file is no PRM.
    """
    measures = means([proposal_quality(truth) for _, truth in images])
    if prm is not None:
        measures["class mAP of the PRM (in training)"] = load_checkpoint(prm).get("train_class_map")
    clusters = [cluster_quality(truth, read.clusters) for read, truth in images]
    counts = [len(values["clusters with a good member"]) for values in clusters]
    return measures | means(clusters) | {"clusters an image": float(np.mean(counts))}
