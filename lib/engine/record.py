"""The record of a training: curves and pictures, in files and in TensorBoard, and a bar."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Self

import cv2
import numpy as np
import torch
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from lib.engine.profile import CPU, peak_memory
from lib.engine.runs import read_lines
from lib.files import atomic_file, write_text

Numbers = Mapping[str, float]


class Record:
    """history.jsonl, tensorboard/ and a progress bar of one training.

    Args:
        run: the run folder.
        start: updates already done; what an interrupted run wrote about later ones is dropped.
        max_iter: updates at the end.
        bar_shows: names of the numbers shown beside the bar.
        device: of the training.
    """

    def __init__(
        self,
        run: Path,
        start: int,
        max_iter: int,
        bar_shows: tuple[str, ...],
        device: torch.device = CPU,
    ) -> None:
        self.run = run
        self.history = run / "history.jsonl"
        kept = [entry for entry in read_lines(self.history) if entry["iteration"] <= start]
        write_text(self.history, "".join(json.dumps(entry) + "\n" for entry in kept))
        self.board = Board(run / "tensorboard", purge_step=start + 1)
        self.bar = tqdm(total=max_iter, initial=start, desc="training", unit="update")
        self.bar_shows = bar_shows
        self.device = device
        self.updates: list[Numbers] = []
        """Numbers of the updates since the last line of the history."""

    def add(self, values: Numbers) -> None:
        """Adds the numbers of one update to the means."""
        self.updates.append(values)
        self.bar.update()

    def write(self, iteration: int, images_per_update: int) -> None:
        """Writes the means since the last call, under `iteration`."""
        means = {name: fmean(one[name] for one in self.updates) for name in self.updates[0]}
        self.updates.clear()
        means["images_per_s"] = images_per_update / means["seconds"]
        means["memory_gb"] = peak_memory(self.device) / 2**30
        with self.history.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **means}) + "\n")
        for name, value in means.items():
            self.board.add(summary.scalar(f"train/{name}", value), iteration)
        self.bar.set_postfix({n: f"{means[n]:.3g}" for n in self.bar_shows if n in means})

    def show(self, iteration: int, name: str, picture: np.ndarray) -> None:
        """Saves an (H, W, 3) uint8 RGB picture as `<name>/update_<N>.png` and in TensorBoard."""
        done, encoded = cv2.imencode(".png", picture[..., ::-1])
        assert done
        with atomic_file(self.run / name / f"update_{iteration:06d}.png") as file:
            file.write(encoded.tobytes())
        self.board.add(summary.image(name, picture, dataformats="HWC"), iteration)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.board.close()


class Board:
    """A TensorBoard event file, written in the calling thread.

    tensorboardX's SummaryWriter writes from a thread of its own; once a full disk has killed that
    thread, the next call waits for ever. Here the OSError is raised.

    Args:
        purge_step: TensorBoard drops the events of earlier files from this step on.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The file's name has the time in seconds; a second file of that second would replace it.
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
