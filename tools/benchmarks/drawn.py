"""Images and matrices to measure with, drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.report import Conditions
from benchmarks.timing import Timing
from lib.structures import Sample

NUM_CLASSES = 20
CELL = 8
"""Side of the regions that the proposals are made of, in pixels."""


def draw_sample(
    long_side: int, num_proposals: int, num_classes: int = NUM_CLASSES, seed: int = 0
) -> Sample:
    """Noise of 3:4 with rectangular proposals of all sizes and shapes, half of each under its mask.

    Two classes are present, every fourth proposal lies in one of five clusters.
    """
    rng = torch.Generator().manual_seed(seed)
    height, width = 3 * long_side // 4, long_side
    rows, columns = -(-height // CELL), -(-width // CELL)
    size = torch.tensor([columns, rows])
    extent = (0.05 + 0.6 * torch.rand(num_proposals, 2, generator=rng) ** 2) * size
    start = torch.rand(num_proposals, 2, generator=rng) * (size - extent)
    start, end = start.floor().long(), (start + extent).ceil().long()
    x, y = torch.arange(columns), torch.arange(rows)
    in_x = (x >= start[:, :1]) & (x < end[:, :1])
    in_y = (y >= start[:, 1:]) & (y < end[:, 1:])
    labels = torch.zeros(num_classes)
    labels[torch.randperm(num_classes, generator=rng)[:2]] = 1
    number = torch.randint(1, 6, (num_proposals,), generator=rng)
    number[torch.arange(num_proposals) % 4 != 0] = 0
    columns_of = torch.cat([torch.zeros(1, dtype=torch.int64), labels.nonzero()[:, 0] + 1])
    return Sample(
        image_id=seed,
        file_name=f"noise{seed}.png",
        image=torch.randn(3, height, width, generator=rng),
        boxes=(CELL * torch.cat([start, end], dim=1)).float(),
        roi_masks=(torch.rand(num_proposals, 7, 7, generator=rng) < 0.5).float(),
        membership=(in_y[:, :, None] & in_x[:, None]).flatten(1),
        areas=torch.full((rows * columns,), CELL**2),
        image_labels=labels,
        cluster_id=number,
        cluster_column=columns_of[number % 3].where(number > 0, -1),
    )


class Product:
    """A large square matrix product: what the machine can do, to compare with."""

    def __init__(self, precision: torch.dtype, conditions: Conditions) -> None:
        self.side = (
            256 if conditions.quick else (8192 if conditions.device.type == "cuda" else 2048)
        )
        shape = (self.side, self.side)
        self.factors = [torch.rand(shape, device=conditions.device).to(precision) for _ in "ab"]

    def __call__(self) -> Tensor:
        return self.factors[0] @ self.factors[1]

    def tflops(self, timing: Timing) -> float:
        return 2 * self.side**3 / timing.best / 1e12
