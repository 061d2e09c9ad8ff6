"""The training loop: one update is the sum of the gradients of a few images (SPEC 6)."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from tqdm import tqdm

from lib.engine.checkpoint import save_checkpoint
from lib.engine.lanes import Lanes
from lib.engine.randomness import random_state, set_random_state
from lib.engine.runs import History, checkpoint_folder
from lib.engine.signals import StopSignals
from lib.engine.solver import LearningRate, set_learning_rate
from lib.structures import TrainingSample

logger = logging.getLogger(__name__)

Numbers = dict[str, float]


class NonFiniteLossError(RuntimeError):
    """A loss, or the gradient, is NaN or infinite; the text names iteration, image and losses."""


@dataclass
class Trainer:
    """A model, how it learns, and how far it has come."""

    model: nn.Module
    losses: Callable[[nn.Module, Any, torch.Generator], dict[str, Tensor]]
    """(model, sample on `device`, generator) -> unweighted losses of one image by name."""
    optimizer: torch.optim.SGD
    learning_rate: LearningRate
    loss_weights: Mapping[str, float]
    images_per_update: int
    seed: int = 0
    """What is drawn for an image follows from this and the image's place in the stream."""
    clip_grad_norm: float | None = None
    device: torch.device = torch.device("cpu")
    num_lanes: int = 1
    """Images worked on at the same time (CPU); changes nothing but the rounding of sums."""
    iteration: int = 0
    """Updates done."""

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.lanes = Lanes(self.model, min(self.num_lanes, self.images_per_update))

    def update(self, samples: Iterator[TrainingSample]) -> Numbers:
        """Takes the next images of the stream and makes one update of the weights.

        Returns:
            Mean of every loss and of their weighted sum (`total`) over the images, the learning
            rate `lr`, the norm of the gradient before clipping `grad_norm`, and the seconds spent
            waiting for images `data_wait`.

        Raises:
            NonFiniteLossError: before any weight has changed.
        """
        rate = self.learning_rate(self.iteration)
        self.lanes.drop_gradients()
        images, pending, waited = [], [], 0.0
        try:
            for number in range(self.images_per_update):
                start = time.perf_counter()
                sample = next(samples)
                waited += time.perf_counter() - start
                images.append(sample.file_name)
                pending.append(self.lanes.submit(number, self._add_gradient, sample, number))
        finally:
            self.lanes.finish()
        of_images = [future.result() for future in pending]
        self.lanes.gather_gradients()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        grad_norm = nn.utils.get_total_norm(gradients, foreach=True)
        losses, told_norm = self._finite(images, of_images, grad_norm)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(
                self.parameters, self.clip_grad_norm, grad_norm, foreach=True
            )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.iteration += 1
        means = {name: sum(one[name] for one in losses) / len(losses) for name in losses[0]}
        return {**means, "lr": rate, "grad_norm": told_norm, "data_wait": waited}

    def _add_gradient(
        self, model: nn.Module, sample: TrainingSample, number: int
    ) -> dict[str, Tensor]:
        """Adds the gradient of one image to that of `model`; returns its losses and their sum."""
        sample = sample.to(self.device, non_blocking=True)
        losses = self.losses(model, sample, self._generator(number))
        total = sum(self.loss_weights[name] * value for name, value in losses.items())
        total.backward()
        return {name: value.detach() for name, value in {**losses, "total": total}.items()}

    def _generator(self, number: int) -> torch.Generator:
        """Draws for image `number` of the update in hand."""
        place = self.iteration * self.images_per_update + number
        seed = np.random.SeedSequence([self.seed, place]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))

    def _finite(
        self, images: list[str], losses: list[dict[str, Tensor]], grad_norm: Tensor
    ) -> tuple[list[Numbers], float]:
        """Losses and gradient norm as numbers, after a look whether they are."""
        # One transfer from the device for all of them.
        flat = [value for one in losses for value in one.values()]
        *numbers, norm = torch.stack([*flat, grad_norm]).tolist()
        rows = [numbers[n : n + len(losses[0])] for n in range(0, len(numbers), len(losses[0]))]
        told = [dict(zip(losses[0], row, strict=True)) for row in rows]
        self._check(images, told, norm)
        return told, norm

    def _check(self, images: list[str], losses: list[Numbers], grad_norm: float) -> None:
        for image, values in zip(images, losses, strict=True):
            if not all(map(math.isfinite, values.values())):
                told = ", ".join(f"{name} {value:g}" for name, value in values.items())
                raise NonFiniteLossError(
                    f"update {self.iteration + 1}, image {image}: a loss is not finite ({told}); "
                    "the last checkpoint is usable; try a lower solver.base_lr or "
                    "solver.clip_grad_norm"
                )
        if not math.isfinite(grad_norm):
            raise NonFiniteLossError(
                f"update {self.iteration + 1}, images {', '.join(images)}: the losses are finite "
                "but their gradient is not; the last checkpoint is usable; try a lower "
                "solver.base_lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to go on bit for bit, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "step": self.iteration,
            "batch_size": self.images_per_update,
            "optimizer": self.optimizer.state_dict(),
            "rng": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["step"]
        set_random_state(state["rng"])


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
) -> int | None:
    """Updates the model from where it stands until `max_iter`, and keeps a record in `run`.

    Writes ckpt/ (every `checkpoint_period` updates and at the end), history.jsonl and
    tensorboard/. SIGINT and SIGTERM end it after the update in hand, with a checkpoint.

    Args:
        samples: the stream of images, standing where the trainer stands.
        checkpoint_extra: further entries of the checkpoints, tensors and plain values.

    Returns:
        The signal that ended it, None when it reached `max_iter`.

    Raises:
        NonFiniteLossError: nothing is saved; the last checkpoint stays.
    """
    history = History(run / "history.jsonl", trainer.iteration)
    averages = Averages()
    board = SummaryWriter(str(run / "tensorboard"), purge_step=trainer.iteration + 1)
    bar = tqdm(total=max_iter, initial=trainer.iteration, desc="training", unit="update")
    with board, bar, StopSignals() as stop:
        while trainer.iteration < max_iter:
            start = time.perf_counter()
            values = trainer.update(samples)
            averages.add({**values, "seconds": time.perf_counter() - start})
            bar.update()
            stopped_by = stop.received  # looked at once: it may come at any moment
            last = stopped_by is not None or trainer.iteration == max_iter
            if last or trainer.iteration % log_period == 0:
                means = averages.take()
                means["images_per_s"] = trainer.images_per_update / means["seconds"]
                history.append(trainer.iteration, means)
                for name, value in means.items():
                    board.add_scalar(f"train/{name}", value, trainer.iteration)
                bar.set_postfix(
                    {n: f"{means[n]:.3g}" for n in ("total", *trainer.loss_weights) if n in means}
                )
            if last or trainer.iteration % checkpoint_period == 0:
                content = {**trainer.state_dict(), **checkpoint_extra}
                path = save_checkpoint(checkpoint_folder(run), content, keep_checkpoints)
                logger.info("update %d: saved %s", trainer.iteration, path)
            if stopped_by is not None:
                return stopped_by
    return None


class Averages:
    """Running means of numbers by name, emptied when read."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0

    def add(self, values: Numbers) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] += value

    def take(self) -> Numbers:
        means = {name: total / self.count for name, total in self.sums.items()}
        self.__init__()
        return means
