"""A training as a tool runs it: its run folder, where it goes on, what it says and how it ends.

What is trained, on what, is the tool's own; this is the same for CIM and for the Mask R-CNN.
"""

from __future__ import annotations

import argparse
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lib.config import Config, RefineConfig, save_config
from lib.data.loader import Trainable, train_loader
from lib.engine.distributed import Ranks, joined_ranks
from lib.engine.resume import TRAINED_WITH, find_resumable
from lib.engine.runs import claim_folder, describe_environment, newest_checkpoint, start_logging
from lib.engine.trainer import NonFiniteLossError, Trainer
from lib.engine.training import train
from lib.files import write_json
from lib.structures import TrainingSample

logger = logging.getLogger(__name__)

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
        images = (trainer.iteration - done_before) * trainer.images_per_update
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
