"""A trace of a few updates by torch's profiler, and the peak of memory."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lib.engine.distributed import Ranks

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
SKIPPED, WARM_UP, TRACED = 2, 1, 3
"""Updates; the first ones are slower than all others."""
_ROWS = 25
"""Operations in the table."""


@contextmanager
def tracing(folder: Path, ranks: Ranks, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Traces a few updates of each rank; gives a function to call after every update.

    Writes `trace_rank<N>.json`, for chrome://tracing or ui.perfetto.dev, and
    `operations_rank<N>.txt`, the operations that took most time.

    Args:
        wanted: False does nothing.
    """
    if not wanted:
        yield lambda: None
        return
    # Private, but the only way to trace all threads, which work on images of their own.
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile, schedule

    on_gpu = torch.device(ranks.device).type == "cuda"

    def write(profiler: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / f"trace_rank{ranks.rank}.json"
        profiler.export_chrome_trace(str(trace))
        by = f"self_{'device' if on_gpu else 'cpu'}_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=_ROWS)
        trace.with_name(f"operations_rank{ranks.rank}.txt").write_text(table)
        logger.info("profile of %d updates: %s", TRACED, trace)

    with profile(
        activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu],
        schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=TRACED, repeat=1),
        on_trace_ready=write,
        experimental_config=_ExperimentalConfig(profile_all_threads=True),
    ) as profiler:
        yield profiler.step


def peak_memory(device: torch.device = CPU) -> int:
    """Peak memory in bytes: on a GPU, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
