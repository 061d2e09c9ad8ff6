"""The training loop: updates, and between them the record, checkpoints, a look at the signals."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from lib.config import Config, RefineConfig, save_config
from lib.data.loader import Trainable, train_loader
from lib.engine.checkpoint import TRAINED_WITH, find_resumable, save_checkpoint
from lib.engine.distributed import Ranks, joined_ranks
from lib.engine.profile import Profile
from lib.engine.record import Record
from lib.engine.runs import (
    checkpoint_folder,
    claim_folder,
    describe_environment,
    newest_checkpoint,
    start_logging,
)
from lib.engine.trainer import NonFiniteLossError, Trainer
from lib.files import atomic_file, write_json
from lib.structures import TrainingSample

logger = logging.getLogger(__name__)


def train(
    trainer: Trainer,
    samples: Iterator[TrainingSample],
    run: Path,
    max_iter: int,
    *,
    checkpoint_period: int,
    keep_checkpoints: int,
    log_period: int,
    checkpoint_extra: Mapping[str, Any],
    image_period: int = 0,
    picture: Callable[[nn.Module], np.ndarray] | None = None,
    profile: bool = False,
) -> int | None:
    """Updates the model from where it stands until `max_iter`, and keeps a record in `run`.

    Writes ckpt/ (every `checkpoint_period` updates and at the end), history.jsonl, tensorboard/
    and mining/. SIGINT and SIGTERM, to any rank, end it after the update in hand, with a
    checkpoint. Of several ranks the first alone writes.

    Args:
        samples: the images of this rank from `trainer.first_sample` on.
        checkpoint_extra: further entries of the checkpoints, tensors and plain values.
        image_period: updates from one picture to the next; 0 draws none.
        picture: draws what the model does, (H, W, 3) uint8 RGB.
        profile: also writes profile/, see Profile.

    Returns:
        The signal that ended it, None when it reached `max_iter`.

    Raises:
        NonFiniteLossError: the last checkpoint stays; failed_update.pt keeps what led to it.
        OSError: something could not be written; the last checkpoint stays.
    """
    ranks = trainer.ranks
    with ExitStack() as stack:
        record = None
        if ranks.is_first:
            shown = ("total", *trainer.loss_weights)
            record = stack.enter_context(
                Record(run, trainer.iteration, max_iter, shown, trainer.device)
            )
        stop = stack.enter_context(StopSignals(second_ends=ranks.count == 1))
        profiler = stack.enter_context(Profile(run / "profile", ranks, profile))
        while trainer.iteration < max_iter:
            start = time.perf_counter()
            try:
                values = trainer.update(samples)
            except NonFiniteLossError as error:
                if ranks.is_first:
                    save_failed_update(run, trainer, error, checkpoint_extra)
                ranks.wait()
                raise
            # Looked at once: a signal may come at any moment, and to one rank before another.
            stopped_by = next(filter(None, ranks.gather(stop.received)), None)
            last = stopped_by is not None or trainer.iteration == max_iter
            if record is not None:
                record.add({**values, "seconds": time.perf_counter() - start})
                if last or trainer.iteration % log_period == 0:
                    record.write(trainer.iteration, trainer.solver.images_per_update)
                if picture is not None and image_period and trainer.iteration % image_period == 0:
                    record.show(trainer.iteration, "mining", picture(trainer.model))
                if last or trainer.iteration % checkpoint_period == 0:
                    content = {**trainer.state_dict(), **checkpoint_extra}
                    path = save_checkpoint(checkpoint_folder(run), content, keep_checkpoints)
                    logger.info("update %d: saved %s", trainer.iteration, path)
            profiler.step()
            if last:
                ranks.wait()  # for the checkpoint: torchrun may kill all when the first one leaves
            if stopped_by is not None:
                return stopped_by
    return None


class StopSignals:
    """While active, the first SIGINT or SIGTERM is only noted, so that work can end in order.

    Outside the main thread nothing changes.

    Args:
        second_ends: a second signal ends the process at once. False where somebody else sees to
            that: torchrun kills what has not ended in half a minute, and the signal may come from
            it and from the system as well.
    """

    def __init__(self, second_ends: bool = True) -> None:
        self.received: int | None = None
        self.second_ends = second_ends
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and self.second_ends:
            raise SystemExit(128 + number)
        self.received = self.received or number


FAILED_UPDATE = "failed_update.pt"

HOW_IT_ENDS = (
    "Ctrl-C and SIGTERM end it after the update in hand, saved, with code 130 or 143; NaN or "
    "infinity with 1, other errors with 2. By tools/launch.py (torchrun) several processes train "
    "together."
)
"""For the help of a tool."""


def exit_code(run: Callable[[argparse.Namespace, Ranks], int], args: argparse.Namespace) -> int:
    """Calls `run(args, ranks)`, on `args.device`, and turns errors into a line and a code.

    Returns:
        What `run` returns, or a code of HOW_IT_ENDS.
    """
    try:
        with joined_ranks(args.device) as ranks:
            start_logging(rank=ranks.rank)
            try:
                return run(args, ranks)
            except NonFiniteLossError as error:
                if ranks.is_first:  # all have noticed
                    logger.error("error: %s", error)
                return 1
    except (OSError, ValueError) as error:
        logger.error("error: %s", error)  # to the run's log as well, once there is one
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted before the first update")
        return 128 + signal.SIGINT


@dataclass(frozen=True)
class TrainingRun:
    """One training and its run folder."""

    folder: Path
    config: Config
    settings: Config | RefineConfig
    """The part of `config` with the `solver` and `input` of this training."""
    trained_with: Mapping[str, Any]
    """What must be the same for it to be gone on with, nested plain values."""
    class_names: list[str]
    train_size: int
    """Images that are trained on."""
    ranks: Ranks

    def open(self, must_exist: bool = False) -> dict[str, Any] | None:
        """Claims the folder, and writes its log from now on.

        Args:
            must_exist: there has to be a checkpoint.

        Returns:
            The checkpoint to go on from; None where a training begins.

        Raises:
            ValueError: the checkpoint is of another training; ranks see different ones; none.
            OSError: the folder cannot be written to.
        """
        state = find_resumable(self.folder, self.trained_with)
        steps = self.ranks.gather(state and state["step"])
        if len(set(steps)) > 1:
            raise ValueError(
                f"{self.folder}: the processes see checkpoints of different updates there "
                f"({steps}); the run folder must lie on a disk that all machines share"
            )
        if must_exist and state is None:
            raise ValueError(f"--resume: {self.folder} has no checkpoint to go on with")
        if self.ranks.is_first:
            claim_folder(self.folder)
        start_logging(self.folder / "log.txt", self.ranks.rank)
        return state

    def begin(self, trainer: Trainer, state: Mapping[str, Any] | None) -> None:
        """Sets the trainer to what `open` gave; of a new run, notes down with what it is made."""
        if state is not None:
            trainer.load_state_dict(state)
        elif self.ranks.is_first:
            save_config(self.config, self.folder / "config.yaml")
            write_json(self.folder / "environment.json", describe_environment(), indent=2)

    def samples(self, data: Trainable, trainer: Trainer) -> Iterator[TrainingSample]:
        """The images of this rank from where the trainer stands."""
        settings = self.settings.input
        return train_loader(
            data,
            settings.train_scales,
            settings.train_flips,
            self.config.run.seed,
            start=trainer.first_sample,
            step=self.ranks.count,
            num_workers=settings.num_workers,
            pin_memory=self.ranks.device.startswith("cuda"),
        )

    def announce(self, data: str, network: str, start: object, trainer: Trainer) -> None:
        """Says in plain words what is about to be trained on what.

        Args:
            start: what a new training starts from.
        """
        solver, done, ranks = self.settings.solver, trainer.iteration, self.ranks
        begins = f"going on after {done} updates" if done else f"starting from {start}"
        logger.info("data: %s", data)
        logger.info("network: %s, %s", network, begins)
        logger.info(
            "training: %d updates of %d images, every image about %.1f times, on %s",
            solver.max_iter,
            solver.images_per_update,
            solver.max_iter * solver.images_per_update / self.train_size,
            f"{ranks.count} x {trainer.device.type}" if ranks.count > 1 else trainer.device,
        )
        logger.info("run folder: %s", self.folder)

    def train(
        self, trainer: Trainer, samples: Iterator[TrainingSample], next_tool: str, **options: Any
    ) -> int:
        """Trains to the end, or until a signal, and says which it was.

        Args:
            next_tool: the tool to test with.
            options: of `lib.engine.training.train`.

        Returns:
            The tool's exit code.
        """
        begun, done_before = time.monotonic(), trainer.iteration
        settings = self.config.run
        stopped_by = train(
            trainer,
            samples,
            self.folder,
            self.settings.solver.max_iter,
            checkpoint_period=settings.checkpoint_period,
            keep_checkpoints=settings.keep_checkpoints,
            log_period=settings.log_period,
            checkpoint_extra={
                "train_size": self.train_size,
                "class_names": self.class_names,
                "config": self.config.model_dump(mode="json"),
                TRAINED_WITH: self.trained_with,
            },
            **options,
        )
        if stopped_by is not None:
            name = signal.Signals(stopped_by).name
            text = "stopped by %s; go on with --output %s and the same options"
            logger.info(text, name, self.folder)
            return 128 + stopped_by
        images = (trainer.iteration - done_before) * trainer.solver.images_per_update
        self._farewell(images, time.monotonic() - begun, next_tool)
        return 0

    def _farewell(self, images: int, seconds: float, next_tool: str) -> None:
        """One line that says what was done and where everything is, and one on what comes next."""
        folder, pictures = self.folder, self.folder / "mining"
        logger.info(
            "trained: %s; %d images in %s; weights %s, curves %s (tensorboard --logdir %s)%s, "
            "log %s",
            folder,
            images,
            timedelta(seconds=round(seconds)),
            newest_checkpoint(folder),
            folder / "history.jsonl",
            folder,
            f", pictures {pictures}" if pictures.is_dir() else "",
            folder / "log.txt",
        )
        logger.info("next: python %s --run %s on the data set to test on", next_tool, folder)


def save_failed_update(
    run: Path, trainer: Trainer, error: NonFiniteLossError, extra: Mapping[str, Any]
) -> None:
    """Writes `run/failed_update.pt`: the weights before the update, its images, its losses.

    It holds tensors and plain values alone, and all images, also those of other ranks. Where it
    cannot be written this is only said: the error itself matters more.

    Args:
        extra: further entries, such as the configuration.
    """
    path = run / FAILED_UPDATE
    content = {
        "model": trainer.model.state_dict(),
        "step": trainer.iteration,
        "batch_size": trainer.solver.images_per_update,
        "seed": trainer.seed,
        "samples": [_plain(sample) for sample in error.samples],
        "losses": list(error.losses),
        "told": str(error),
        **extra,
    }
    try:
        with atomic_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as fault:  # torch makes the one of the other
        logger.warning("%s: could not be written: %s", path, fault.__context__ or fault)
    else:
        logger.info("the failed update is kept: python tools/replay.py %s", path)


def _plain(sample: Any) -> dict[str, Any]:
    """A sample's fields; tensors that are views of more are cut loose."""
    fields = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample)}
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in fields.items()
    }
