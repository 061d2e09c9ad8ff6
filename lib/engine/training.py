"""The training loop of CIM and of the Mask R-CNN, and the run folder around it."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from lib.config import Config, RefineConfig, RunConfig, save_config
from lib.data.loader import ImageDataset, train_loader
from lib.engine.checkpoint import MADE_FROM, find_resumable, list_checkpoints, save_checkpoint
from lib.engine.distributed import Ranks
from lib.engine.profile import tracing
from lib.engine.record import Record
from lib.engine.runs import (
    checkpoint_folder,
    claim_folder,
    describe_environment,
    find_checkpoint,
    start_logging,
)
from lib.engine.trainer import NonFiniteLossError, Trainer
from lib.files import atomic_file, write_json
from lib.provenance import MadeFrom
from lib.structures import TrainingSample

logger = logging.getLogger(__name__)


def train(
    trainer: Trainer,
    samples: Iterator[TrainingSample],
    run: Path,
    max_iter: int,
    settings: RunConfig,
    about: Mapping[str, Any],
    picture: Callable[[nn.Module], np.ndarray] | None = None,
    profile: bool = False,
) -> int | None:
    """Updates the model from where it stands until `max_iter`, and keeps a record in `run`.

    Writes ckpt/, history.jsonl, tensorboard/ and mining/. SIGINT and SIGTERM, to any rank, end it
    after the update in hand, with a checkpoint. Of several ranks only the first one writes.

    Args:
        samples: the images of this rank from `trainer.first_sample` on.
        settings: the periods of all that is written.
        about: further entries of the checkpoints, tensors and plain values.
        picture: draws what the model does, (H, W, 3) uint8 RGB.
        profile: also writes profile/, see `tracing`.

    Returns:
        The signal that ended it, None when it reached `max_iter`.

    Raises:
        NonFiniteLossError: the last checkpoint stays; failed_update.pt keeps what led to it.
        OSError: something could not be written; the last checkpoint stays.
    """
    ranks, record = trainer.ranks, None
    with ExitStack() as stack:
        if ranks.is_first:
            shown = ("total", *trainer.loss_weights)
            record = Record(run, trainer.iteration, max_iter, shown, trainer.device)
            stack.enter_context(record)
        stop = stack.enter_context(StopSignals(second_ends=ranks.count == 1))
        samples = stop.bounded(samples)
        profiled = stack.enter_context(tracing(run / "profile", ranks, profile))
        while trainer.iteration < max_iter:
            try:
                values = trainer.update(samples)
            except NonFiniteLossError as error:
                if ranks.is_first:
                    save_failed_update(run, trainer, error, about)
                ranks.wait()
                raise
            # Read once: a signal may come at any moment, and to one rank before another.
            stopped_by = next(filter(None, ranks.gather(stop.received)), None)
            done = trainer.iteration
            last = stopped_by is not None or done == max_iter
            if record is not None:
                record.add(values)
                if last or done % settings.log_period == 0:
                    record.write(done, trainer.solver.images_per_update)
                if picture and settings.image_period and done % settings.image_period == 0:
                    record.show(done, "mining", picture(trainer.model))
                if last or done % settings.checkpoint_period == 0:
                    content, keep = {**trainer.state_dict(), **about}, settings.keep_checkpoints
                    path = save_checkpoint(checkpoint_folder(run), content, keep)
                    logger.info("update %d: saved %s", done, path)
            profiled()
            if last:
                ranks.wait()  # for the checkpoint: torchrun may kill all when the first one leaves
            if stopped_by is not None:
                return stopped_by
    return None


WAIT_SECONDS = 20.0
"""Longest wait for a sample after a signal; Slurm and torchrun kill after 30 s."""


class StopSignals:
    """While active, records the first SIGINT or SIGTERM, so that work can end in order.

    Outside the main thread nothing changes.

    Args:
        second_ends: a second signal ends the process at once. False under torchrun, which kills
            what has not ended in half a minute: the same signal may come from it and the system.
    """

    def __init__(self, second_ends: bool = True) -> None:
        self.received: int | None = None
        self.second_ends = second_ends
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and self.second_ends:
            raise SystemExit(128 + number)
        self.received = self.received or number
        self._limit_wait()

    def bounded(self, samples: Iterator[TrainingSample]) -> Iterator[TrainingSample]:
        """Yields the samples; after a signal a longer wait for one than WAIT_SECONDS ends it all.

        A worker that hangs, on a lost network disk for instance, would keep the process for ever.
        """
        while True:
            self._waiting = True
            self._limit_wait()
            try:
                sample = next(samples)
            except StopIteration:
                return
            finally:
                self._waiting = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            yield sample

    def _limit_wait(self) -> None:
        if self._waiting and self.received is not None:
            signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS)

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        logger.error("no sample came for %g s; the last checkpoint is usable", WAIT_SECONDS)
        raise SystemExit(128 + (self.received or signal.SIGALRM))


FAILED_UPDATE = "failed_update.pt"


@dataclass
class TrainingRun:
    """The run folder of a training: where it resumes, what it says, how it ends."""

    folder: Path
    config: Config
    settings: Config | RefineConfig
    """The part of `config` with the `solver` and `input` of this training."""
    made_from: MadeFrom
    """Settings and data that must match to resume, see lib/provenance.py."""
    dataset_name: str
    class_names: list[str]
    train_size: int
    """Images that are trained on."""
    ranks: Ranks
    environment: dict[str, Any] = field(default_factory=describe_environment)

    def open(self, must_exist: bool = False, overwrite: bool = False) -> dict[str, Any] | None:
        """Claims the folder and starts its log.

        Args:
            must_exist: requires a checkpoint.
            overwrite: a training of something else is removed, with its results.

        Returns:
            The checkpoint to resume from; None for a new training.

        Raises:
            ValueError: the checkpoint belongs to another training, or ranks see different ones;
                there is none although `must_exist`.
            OSError: the folder cannot be written to.
        """
        state = find_resumable(self.folder, self.made_from, overwrite)
        steps = self.ranks.gather(state and state["step"])
        if len(set(steps)) > 1:
            raise ValueError(
                f"{self.folder}: the processes see checkpoints of different updates there "
                f"({steps}); the run folder must lie on a disk that all machines share"
            )
        if must_exist and state is None:
            raise ValueError(f"--resume: {self.folder} has no checkpoint to resume from")
        if self.ranks.is_first:
            if state is None and list_checkpoints(checkpoint_folder(self.folder)):
                shutil.rmtree(checkpoint_folder(self.folder))
                shutil.rmtree(self.folder / "test", ignore_errors=True)  # results of these weights
            claim_folder(self.folder)
        start_logging(self.folder / "log.txt", self.ranks.rank)
        return state

    def begin(self, trainer: Trainer, state: Mapping[str, Any] | None) -> None:
        """Sets the trainer to the checkpoint of `open`; records what a new run is made with."""
        if state is not None:
            trainer.load_state_dict(state)
        elif self.ranks.is_first:
            save_config(self.config, self.folder / "config.yaml")
            write_json(self.folder / "environment.json", self.environment, indent=2)
        self.done_before = trainer.iteration
        self.begun = time.monotonic()

    @property
    def about(self) -> dict[str, Any]:
        """Entries of every checkpoint beside the state of the training: what repeats it."""
        return {
            "train_size": self.train_size,
            "class_names": self.class_names,
            "config": self.config.model_dump(mode="json"),
            "environment": self.environment,
            "dataset": self.dataset_name,
            MADE_FROM: self.made_from,
        }

    def samples(self, data: ImageDataset, trainer: Trainer) -> Iterator[TrainingSample]:
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
        """Logs what is trained on what.

        Args:
            start: what a new training starts from.
        """
        solver, done, ranks = self.settings.solver, trainer.iteration, self.ranks
        begins = f"resuming after {done} updates" if done else f"starting from {start}"
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

    def end(self, trainer: Trainer, stopped_by: int | None) -> int:
        """Logs what was done and where everything is.

        Args:
            stopped_by: what `train` returned.

        Returns:
            The tool's exit code.
        """
        folder, pictures = self.folder, self.folder / "mining"
        if stopped_by is not None:
            name = signal.Signals(stopped_by).name
            logger.info("stopped by %s; resume with --output %s and the same options", name, folder)
            return 128 + stopped_by
        updates = trainer.iteration - self.done_before
        logger.info(
            "trained: %s; %d images in %s; weights %s, curves %s (tensorboard --logdir %s)%s, "
            "log %s",
            folder,
            updates * trainer.solver.images_per_update,
            timedelta(seconds=round(time.monotonic() - self.begun)),
            find_checkpoint(folder),
            folder / "history.jsonl",
            folder,
            f", pictures {pictures}" if pictures.is_dir() else "",
            folder / "log.txt",
        )
        return 0


def save_failed_update(
    run: Path, trainer: Trainer, error: NonFiniteLossError, extra: Mapping[str, Any]
) -> None:
    """Writes `run/failed_update.pt`: the weights before the update, its images, its losses.

    It holds tensors and plain values only, and the images of all ranks. If it cannot be written,
    that is only logged: the error of the training matters more.

    Args:
        extra: further entries, such as the configuration.
    """
    path = run / FAILED_UPDATE
    content = {
        "model": trainer.model.state_dict(),
        "step": trainer.iteration,
        "batch_size": trainer.solver.images_per_update,
        "seed": trainer.seed,
        "samples": [  # tensors that are views of larger ones are copied
            {n: v.clone() if isinstance(v, Tensor) else v for n, v in vars(sample).items()}
            for sample in error.samples
        ],
        "losses": list(error.losses),
        "told": str(error),
        **extra,
    }
    try:
        with atomic_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as fault:  # torch turns OSError into RuntimeError
        logger.warning("%s: could not be written: %s", path, fault.__context__ or fault)
    else:
        logger.info("the failed update is kept: python tools/study.py replay %s", path)
