"""From masks, and from stored regions, to iou and containment of all pairs of proposals."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Conditions, Row
from benchmarks.slow_twins import pairwise_overlaps
from benchmarks.timing import Timing, time_together
from lib.proposals.generate import generate_proposals
from lib.proposals.overlaps import overlaps
from lib.proposals.regions import encode
from lib.proposals.store import ProposalStore
from lib.structures import Regions

logger = logging.getLogger(__name__)

SIZES = ((375, 500), (480, 640))
COUNTS = (100, 300, 700, 1500)
SLOW_ROWS = 1
"""Of the P x P pairs the slow twin does this many rows in a round; the rest is extrapolated."""


def run(conditions: Conditions) -> Iterator[Row]:
    """Measures all of COUNTS at all of SIZES."""
    sizes, counts = (((60, 80),), (10, 20)) if conditions.quick else (SIZES, COUNTS)
    for size in sizes:
        found = generate_proposals(draw_image(size, conditions.seed), max(counts))
        for count in counts:
            logger.info("overlaps: %d proposals of %dx%d", count, *size)
            yield from _measure(found, min(count, found.num_proposals), conditions)


def _measure(found: Regions, count: int, conditions: Conditions) -> Iterator[Row]:
    masks = found.masks(slice(count))
    height, width = found.size
    case = f"P={count}, {height}x{width}"
    goals = (height, width) == (375, 500)
    with tempfile.TemporaryDirectory() as folder:
        store = ProposalStore(folder)
        stored = encode(masks)
        store.save("image.png", stored)
        file = store.path("image.png")
        num_bytes = file.stat().st_size
        membership = torch.from_numpy(stored.membership).float().to(conditions.device)
        areas = torch.from_numpy(stored.areas).float().to(conditions.device)

        def both(regions: Regions) -> tuple[Tensor, Tensor]:
            tensors = (torch.from_numpy(regions.membership), torch.from_numpy(regions.areas))
            return overlaps(*(t.to(conditions.device) for t in tensors))

        times = time_together(
            {
                "encode": lambda: encode(masks),
                "from masks": lambda: both(encode(masks)),
                "from store": lambda: both(store.load_regions("image.png")),
                "file and product": lambda: (
                    file.read_bytes(),
                    (membership * areas) @ membership.T,
                ),
                "slow": lambda: pairwise_overlaps(masks, range(SLOW_ROWS)),
            },
            seconds=0.1 if conditions.quick else 6,
            min_rounds=2 if conditions.quick else 7,
        )
    slow: Timing = times["slow"].scaled(count / SLOW_ROWS)
    extrapolated = (
        f"the slow twin (every pair on boolean masks) is measured on {SLOW_ROWS} of P rows of "
        "pairs and extrapolated to all"
    )
    yield Row(f"{case}: masks to regions", times["encode"].best_ms, "ms")
    yield Row(f"{case}: masks to both maps", times["from masks"].best_ms, "ms")
    yield Row(
        f"{case}: speed-up over the slow twin",
        slow.times(times["from masks"]),
        "x",
        at_least=1500 if goals and count == 300 else None,
        note=extrapolated,
    )
    yield Row(f"{case}: store to both maps", times["from store"].best_ms, "ms")
    yield Row(
        f"{case}: the same, times the bare work",
        times["from store"].times(times["file and product"]),
        "x",
        at_most=4 if goals and count == 700 else None,
        note="the bare work: reading the file's bytes, and one matrix product of its regions",
    )
    maps = 2 * 2 * count**2  # two maps of float16
    yield Row(
        f"{case}: bytes of the two float16 maps",
        100 * num_bytes / maps,
        "%",
        at_most=3 if count == 700 else None,
    )


def draw_image(size: tuple[int, int], seed: int) -> np.ndarray:
    """(H, W, 3) uint8: noise of all scales, as in photographs, cut by discs of other noise.

    The proposals of such an image nest like those of a photograph.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    canvas = _pink_noise(size, rng)
    for _ in range(40):
        radius = rng.uniform(0.02, 0.2) * width
        inside = np.hypot(y - rng.uniform(0, height), x - rng.uniform(0, width)) < radius
        canvas[inside] = (_pink_noise(size, rng) + rng.normal(0, 1, 3))[inside]
    return np.clip(128 + 50 * canvas, 0, 255).astype(np.uint8)


def _pink_noise(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) of mean 0 and deviation 1, whose amplitude falls with the frequency."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=(*size, 3)), axes=(0, 1)) / frequency[..., None] ** 1.2
    noise = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return noise / noise.std()
