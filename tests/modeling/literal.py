"""SPEC section 4 and 5 word by word, in loops over classes, proposals and pairs.

The slow twin of lib/modeling/heads.py and losses.py. float32 where the order of rounding could
matter (weights, overlaps), Python floats elsewhere.
"""

from __future__ import annotations

import math

import numpy as np


def mine(
    cls_prob,
    integrity,
    image_labels,
    iou,
    containment,
    stage=0,
    labels="cim",
    seed_fraction=0.1,
    containment_thresh=0.85,
    oversized_fraction=0.9,
    cls_thresh=0.25,
    thresh_step=0.1,
    **_,
):
    """{proposal: (class, weight)} of the instances of one stage, before sampling."""
    t_nms = np.float32(cls_thresh + thresh_step * stage)
    t_con = np.float32(containment_thresh)
    over = oversized(containment, containment_thresh, oversized_fraction)
    cls_prob, integrity = cls_prob[:, 1:], integrity[:, 1:]
    score = cls_prob * integrity
    num = len(cls_prob)
    found = {}
    for c in range(len(image_labels)):
        if not image_labels[c]:
            continue
        ranking = score[:, c] if labels == "mist" else cls_prob[:, c]
        order = sorted(range(num), key=lambda i: (-ranking[i], i))
        kept = []
        for seed in order[: math.ceil(seed_fraction * num)]:
            if all(iou[seed, other] < t_nms for other in kept):
                kept.append(seed)
        chosen = set()
        for seed in kept:
            if labels == "mist":
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


def oversized(containment, containment_thresh=0.85, oversized_fraction=0.9):
    num = len(containment)
    return [
        sum(containment[i, j] > np.float32(containment_thresh) for j in range(num))
        >= oversized_fraction * num
        for i in range(num)
    ]


def targets(found, iou, stage=0, cls_thresh=0.25, iou_thresh=0.5, thresh_step=0.1, **_):
    """(column, weight, iou_target) of every proposal."""
    num = len(iou)
    column = np.full(num, -1)
    weight = np.zeros(num, np.float32)
    iou_target = np.zeros(num, np.float32)
    for i in range(num):
        nearest, overlap = None, 0.0
        for instance in sorted(found):
            if iou[i, instance] > overlap:
                nearest, overlap = instance, iou[i, instance]
        if nearest is None:
            continue
        weight[i] = found[nearest][1]
        column[i] = found[nearest][0] + 1
        if overlap < np.float32(cls_thresh + thresh_step * stage):
            column[i] = 0
        if overlap > np.float32(iou_thresh + thresh_step * stage):
            iou_target[i] = 1
    return column, weight, iou_target


def clamp(x):
    return min(max(float(x), 1e-6), 1 - 1e-6)


def bce(prob, target):
    return -(target * math.log(clamp(prob)) + (1 - target) * math.log(1 - clamp(prob)))


def bag(cls_prob, det_prob, image_labels):
    padded = [1.0, *image_labels]
    terms = []
    for c, y in enumerate(padded):
        terms.append(
            bce(
                sum(
                    float(a) * float(b) for a, b in zip(cls_prob[:, c], det_prob[:, c], strict=True)
                ),
                y,
            )
        )
    return sum(terms) / len(terms)


def pcl(cls_prob, number, column):
    total, members_in_all = 0.0, 0
    width = cls_prob.shape[1]
    for k in sorted(set(number) - {0}):
        members = [p for p in range(len(number)) if number[p] == k]
        c = column[members[0]]
        members_in_all += len(members)
        if c > 0:
            for j in range(width):
                mean = sum(float(cls_prob[p, j]) for p in members) / len(members)
                total += len(members) * bce(mean, float(j == c)) / width
        else:
            for p in members:
                for j in range(width):
                    total += bce(cls_prob[p, j], float(j == 0)) / width
    return 12 * total / (members_in_all + 1e-6)


def refine_cls(cls_prob, column, weight):
    labelled = [p for p in range(len(column)) if column[p] >= 0]
    if not labelled:
        return 0.0
    return sum(-math.log(clamp(cls_prob[p, column[p]])) * float(weight[p]) for p in labelled) / len(
        labelled
    )


def refine_iou(iou_prob, column, weight, iou_target):
    foreground = [p for p in range(len(column)) if column[p] > 0]
    total = 0.0
    for p in foreground:
        error = abs(float(iou_prob[p, column[p]]) - float(iou_target[p]))
        total += (0.5 * error**2 if error < 1 else error - 0.5) * float(weight[p])
    return total / len(foreground) if foreground else 0.0


def refine_bag(cls_prob, iou_prob, column, weight, image_labels):
    if all(c < 0 for c in column):
        return 0.0
    terms = []
    for c, y in enumerate([1.0, *image_labels]):
        score = [clamp(cls_prob[p, c]) * clamp(iou_prob[p, c]) for p in range(len(column))]
        pool = [p for p in range(len(column)) if column[p] == c or not y]
        if pool:
            best = max(pool, key=lambda p: score[p])
            terms.append(bce(score[best], y) * (float(weight[best]) if y else 1.0))
        else:
            terms.append(bce(0.0, y) * float(weight[0]))
    return sum(terms) / len(terms)
