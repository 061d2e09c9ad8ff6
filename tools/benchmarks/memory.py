"""Peak memory of one training step against the number of proposals, in chunks and at once."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.drawn import NUM_CLASSES, draw_sample
from benchmarks.network import FULL, SMALL, fastest_precision
from benchmarks.report import Conditions, Row
from lib.config import Config, RuntimeConfig
from lib.engine.build import build_trainer
from lib.engine.profile import peak_memory
from lib.modeling.model_builder import build_model

COUNTS = {"bfloat16": (500, 1000, 4000), "float32": (500, 1500)}
"""By the fastest precision of the processor: in float32 more would take too long."""
LONG_SIDE = 480
CHUNK = 500


def run(conditions: Conditions) -> Iterator[Row]:
    """Weights, their gradient, and all that the gradient of one image needs.

    As the operating system has counted it for a process; on CUDA, as PyTorch has.
    """
    precision = fastest_precision(conditions)
    counts, chunk = ((20, 40), 10) if conditions.quick else (COUNTS[precision], CHUNK)
    for count in counts:
        for at_once in (None, chunk):
            how = "at once" if at_once is None else f"chunks of {at_once}"
            arguments = (count, at_once, torch.get_num_threads(), conditions)
            if conditions.device.type == "cuda":
                gc.collect()  # what the last one has left
                torch.cuda.reset_peak_memory_stats(conditions.device)
                peak = peak_bytes(*arguments)
            else:  # a process counts its peak over its whole life: a new one for each
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    peak = pool.submit(peak_bytes, *arguments).result()
            yield Row(f"P={count}, {how}, {precision}", peak / 2**30, "GiB")


def peak_bytes(
    num_proposals: int, chunk: int | None, num_threads: int, conditions: Conditions
) -> int:
    """The most memory that this process has had, after forward and backward pass of one image."""
    torch.manual_seed(conditions.seed)
    torch.set_num_threads(num_threads)
    model = build_model(SMALL if conditions.quick else FULL, NUM_CLASSES)
    runtime = RuntimeConfig(precision=fastest_precision(conditions), proposals_chunk=chunk)
    config = Config(runtime=runtime)
    trainer = build_trainer(config, model, str(conditions.device))
    long_side = 64 if conditions.quick else LONG_SIDE
    sample = draw_sample(long_side, num_proposals).to(conditions.device)
    generator = torch.Generator().manual_seed(conditions.seed)
    trainer.backward(iter([(sample, generator)]), trainer.weigh)
    return peak_memory(conditions.device)
