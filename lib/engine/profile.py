"""A trace of a few updates by torch's profiler, and the peak of memory."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path
from typing import Self

import torch

from lib.engine.distributed import Ranks

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
SKIPPED, WARM_UP, TRACED = 2, 1, 3
"""Updates; the first ones are slower than all others."""
_ROWS = 25
"""Operations in the table."""


class Profile:
    """Traces a few updates of each rank; `step` is called after every update.

    Writes `trace_rank<N>.json`, for chrome://tracing or ui.perfetto.dev, and
    `operations_rank<N>.txt`, the operations that took most time.

    Args:
        wanted: False does nothing.
    """

    def __init__(self, folder: Path, ranks: Ranks, wanted: bool) -> None:
        self.folder = folder
        self.rank = ranks.rank
        self.on_gpu = torch.device(ranks.device).type == "cuda"
        self._profiler = None
        if wanted:
            # Private, but the only way to trace all threads, which work on images of their own.
            from torch._C._profiler import _ExperimentalConfig
            from torch.profiler import ProfilerActivity, profile, schedule

            activities = [ProfilerActivity.CPU]
            if self.on_gpu:
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(
                activities=activities,
                schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=TRACED, repeat=1),
                on_trace_ready=self._write,
                experimental_config=_ExperimentalConfig(profile_all_threads=True),
            )

    def step(self) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / f"trace_rank{self.rank}.json"
        profiler.export_chrome_trace(str(trace))
        by = f"self_{'device' if self.on_gpu else 'cpu'}_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=_ROWS)
        trace.with_name(f"operations_rank{self.rank}.txt").write_text(table)
        logger.info("profile of %d updates: %s", TRACED, trace)

    def __enter__(self) -> Self:
        if self._profiler is not None:
            self._profiler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._profiler is not None:
            self._profiler.__exit__(*error)


def peak_memory(device: torch.device = CPU) -> int:
    """Peak memory in bytes: on a GPU, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
