"""The losses of docs/specification.md in loops over classes and proposals, in Python floats.

The slow twin of lib/modeling/losses.py; that of the miner is tools/benchmarks/slow_twins.py.
"""

from __future__ import annotations

import math


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


def refine_integrity(integrity_prob, column, weight, integrity_target):
    foreground = [p for p in range(len(column)) if column[p] > 0]
    total = 0.0
    for p in foreground:
        error = abs(float(integrity_prob[p, column[p]]) - float(integrity_target[p]))
        total += (0.5 * error**2 if error < 1 else error - 0.5) * float(weight[p])
    return total / len(foreground) if foreground else 0.0


def refine_bag(cls_prob, integrity_prob, column, weight, image_labels):
    if all(c < 0 for c in column):
        return 0.0
    terms = []
    for c, y in enumerate([1.0, *image_labels]):
        score = [clamp(cls_prob[p, c]) * clamp(integrity_prob[p, c]) for p in range(len(column))]
        pool = [p for p in range(len(column)) if column[p] == c or not y]
        if pool:
            best = max(pool, key=lambda p: score[p])
            terms.append(bce(score[best], y) * (float(weight[best]) if y else 1.0))
        else:
            terms.append(bce(0.0, y) * float(weight[0]))
    return sum(terms) / len(terms)
