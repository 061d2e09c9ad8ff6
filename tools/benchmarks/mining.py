"""The targets of all three stages and all present classes of an image, from its scores."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.overlaps import draw_image
from benchmarks.report import Conditions, Row
from benchmarks.slow_twins import LiteralMiner
from benchmarks.timing import time_together
from lib.fast.mining import fast_miner
from lib.modeling.heads import CIMMiner
from lib.proposals.generate import generate_proposals
from lib.proposals.overlaps import overlaps
from lib.proposals.regions import select

logger = logging.getLogger(__name__)

COUNTS = (300, 1000, 4000)
CLASSES = ((20, 2), (80, 3))
"""Classes of a data set, and how many of them an image shows (VOC, COCO)."""
NUM_STAGES = 3
AT_MOST = 30
"""Times a comparison of both P x P maps with a threshold, which mining makes anyway."""


def run(conditions: Conditions) -> Iterator[Row]:
    """Measures all of COUNTS with all of CLASSES.

    The proposals are nested like those of a photograph; the scores are random, which gives more
    different instances than those of a network, and so is the harder case.
    """
    size, counts = ((60, 80), (10, 20)) if conditions.quick else ((375, 500), COUNTS)
    image = draw_image(size, conditions.seed)
    found = generate_proposals(image, max(counts), num_cells=2000, max_iou=1.0)
    for count in (min(count, found.num_proposals) for count in counts):
        regions = select(found, np.arange(count))
        pair = overlaps(torch.from_numpy(regions.membership), torch.from_numpy(regions.areas))
        for num_classes, num_present in CLASSES:
            logger.info("mining: %d proposals, %d classes", count, num_classes)
            yield from _measure(pair, num_classes, num_present, conditions)


def _measure(
    pair: tuple[Tensor, Tensor], num_classes: int, num_present: int, conditions: Conditions
) -> Iterator[Row]:
    count = len(pair[0])
    generator = torch.Generator().manual_seed(conditions.seed)
    shape = (NUM_STAGES, count, num_classes + 1)
    logits = torch.randn(2, *shape, generator=generator)
    cls_prob, integrity = logits[0].softmax(dim=2), logits[1].sigmoid()
    present = torch.randperm(num_classes, generator=generator)[:num_present].sort().values

    found = CIMMiner(anti_noise=False)(cls_prob, integrity, present, *pair)
    literal = LiteralMiner(anti_noise=False)(cls_prob[:1], integrity[:1], present, *pair)
    differing = sum(
        int((getattr(found, name)[0] != getattr(literal, name)[0]).sum()) for name in vars(found)
    )
    on_device = [t.to(conditions.device) for t in (cls_prob, integrity, present, *pair)]
    miner = fast_miner(CIMMiner(), conditions.device)
    calls = {
        "mining": lambda: miner(*on_device, generator),
        "pass": lambda: [overlap > miner.containment_thresh for overlap in on_device[-2:]],
        "literal": lambda: LiteralMiner()(cls_prob[:1], integrity[:1], present, *pair, generator),
    }
    seconds, rounds = (0.1, 2) if conditions.quick else (6, 3)
    times = time_together(calls, seconds, rounds, max_rounds=100, in_a_row=0.01)
    case = f"P={count}, {num_present} of C={num_classes}"
    yield Row(f"{case}: targets of {NUM_STAGES} stages", times["mining"].best_ms, "ms")
    limited = conditions.device.type == "cpu" and count == 1000
    yield Row(
        f"{case}: times a comparison of both maps with a threshold",
        times["mining"].times(times["pass"]),
        "x",
        at_most=AT_MOST if limited else None,
    )
    yield Row(
        f"{case}: speed-up over the literal loop",
        times["literal"].scaled(NUM_STAGES).times(times["mining"]),
        "x",
        at_least=None if conditions.quick else 10,
        note=f"the literal loop is measured on one of {NUM_STAGES} stages, times {NUM_STAGES}",
    )
    yield Row(f"{case}: targets unlike the literal loop's", differing, "", at_most=0)
