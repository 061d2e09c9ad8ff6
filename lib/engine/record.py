"""What a training shows of itself: curves and pictures, in files and in TensorBoard, and a bar."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torch.profiler import ProfilerActivity, profile, schedule
from tqdm import tqdm

from lib.engine.distributed import Ranks
from lib.engine.runs import History
from lib.visualization.panels import save_png

logger = logging.getLogger(__name__)


Numbers = Mapping[str, float]
_CPU = torch.device("cpu")


class Record:
    """history.jsonl, tensorboard/ and a progress bar of one training.

    Args:
        run: the run folder.
        start: updates done before; what an interrupted run wrote of later ones is forgotten.
        max_iter: updates at the end.
        bar_shows: names of the numbers beside the bar.
        device: that is trained on.
    """

    def __init__(
        self,
        run: Path,
        start: int,
        max_iter: int,
        bar_shows: tuple[str, ...],
        device: torch.device = _CPU,
    ) -> None:
        self.run = run
        self.history = History(run / "history.jsonl", start)
        self.board = Board(run / "tensorboard", purge_step=start + 1)
        self.bar = tqdm(total=max_iter, initial=start, desc="training", unit="update")
        self.bar_shows = bar_shows
        self.device = device
        self.averages = Averages()

    def add(self, values: Numbers) -> None:
        """Notes the numbers of one update."""
        self.averages.add(values)
        self.bar.update()

    def write(self, iteration: int, images_per_update: int) -> None:
        """Writes the means since the last time, as of `iteration`."""
        means = self.averages.take()
        means["images_per_s"] = images_per_update / means["seconds"]
        means["memory_gb"] = peak_memory(self.device) / 2**30
        self.history.append(iteration, means)
        for name, value in means.items():
            self.board.add(summary.scalar(f"train/{name}", value), iteration)
        self.bar.set_postfix({n: f"{means[n]:.3g}" for n in self.bar_shows if n in means})

    def show(self, iteration: int, name: str, picture: np.ndarray) -> None:
        """Keeps a picture, (H, W, 3) uint8 RGB, as `<name>/update_<N>.png` and in TensorBoard."""
        save_png(self.run / name / f"update_{iteration:06d}.png", picture)
        self.board.add(summary.image(name, picture, dataformats="HWC"), iteration)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.board.close()


class Board:
    """A TensorBoard event file, written at once.

    tensorboardX's SummaryWriter writes from a thread, and once that has died of a full disk, the
    next call waits for ever. Here the OSError comes out.

    Args:
        purge_step: TensorBoard forgets what earlier files have from this step on.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The name is made of the second, and a file of that name would be overwritten.
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, of_step: summary.Summary, step: int) -> None:
        self._write(Event(step=step, summary=of_step))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Averages:
    """Running means of numbers by name, emptied when read."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0

    def add(self, values: Numbers) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] += value

    def take(self) -> dict[str, float]:
        means = {name: total / self.count for name, total in self.sums.items()}
        self.__init__()
        return means


def peak_memory(device: torch.device = _CPU) -> int:
    """The most bytes that were in use at once so far: on a GPU, or else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


SKIPPED, WARM_UP, TRACED = 2, 1, 3
"""Updates; the first ones are slower than all others."""
_ROWS = 25


class Profile:
    """Traces a few updates of each rank; to be told of the end of every update.

    Writes `trace_rank<N>.json`, for chrome://tracing or ui.perfetto.dev, and
    `operations_rank<N>.txt`, the operations that took the most time, into the folder.

    Args:
        wanted: False does nothing.
    """

    def __init__(self, folder: Path, ranks: Ranks, wanted: bool) -> None:
        self.folder = folder
        self.rank = ranks.rank
        self.on_gpu = torch.device(ranks.device).type == "cuda"
        self._profiler = None
        if wanted:
            # Private, but the only way to see all threads: images are worked on by lanes.
            from torch._C._profiler import _ExperimentalConfig

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

    def _write(self, profiler: profile) -> None:
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
