"""The training loop: one update is the sum of the gradients of a few images (SPEC 6)."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from tqdm import tqdm

from lib.engine.checkpoint import save_checkpoint
from lib.engine.randomness import random_state, set_random_state
from lib.engine.runs import History, checkpoint_folder
from lib.engine.signals import StopSignals
from lib.engine.solver import LearningRate, set_learning_rate
from lib.proposals.overlaps import overlaps
from lib.structures import Sample

logger = logging.getLogger(__name__)

Numbers = dict[str, float]


class NonFiniteLossError(RuntimeError):
    """A loss, or the gradient, is NaN or infinite; the text names iteration, image and losses."""


@dataclass
class Trainer:
    """A model, how it learns, and how far it has come.

    `update` changes nothing when it raises, except the random generators and the gradients.
    """

    model: nn.Module
    """(image (1, 3, h, w), boxes (P, 4), roi_masks (P, 7, 7)) -> Scores."""
    criterion: Callable[..., dict[str, Tensor]]
    """(scores, sample, iou, containment, generator) -> unweighted losses by name."""
    optimizer: torch.optim.SGD
    learning_rate: LearningRate
    loss_weights: Mapping[str, float]
    images_per_update: int
    generator: torch.Generator
    """Draws for anti-noise sampling."""
    clip_grad_norm: float | None = None
    device: torch.device = torch.device("cpu")
    iteration: int = 0
    """Updates done."""
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def update(self, samples: Iterator[Sample]) -> Numbers:
        """Takes the next images of the stream and makes one update of the weights.

        Returns:
            Mean of every loss and of their weighted sum (`total`) over the images, the learning
            rate `lr`, the norm of the gradient before clipping `grad_norm`, and the seconds spent
            waiting for images `data_wait`.

        Raises:
            NonFiniteLossError: before anything has changed.
        """
        rate = self.learning_rate(self.iteration)
        names, rows, waited = [], [], 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.images_per_update):
            start = time.perf_counter()
            sample = next(samples)
            waited += time.perf_counter() - start
            losses = self.losses(sample.to(self.device, non_blocking=True))
            total = sum(self.loss_weights[name] * value for name, value in losses.items())
            total.backward()
            names.append(sample.file_name)
            rows.append(torch.stack([*losses.values(), total]).detach())
        grad_norm = nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None], foreach=True
        )
        # One transfer from the device for everything that is looked at here.
        values = torch.stack([*rows, grad_norm.expand_as(rows[0])]).tolist()
        columns = [*losses, "total"]
        self._check(
            names, [dict(zip(columns, row, strict=True)) for row in values[:-1]], values[-1][0]
        )
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(
                self.parameters, self.clip_grad_norm, grad_norm, foreach=True
            )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.iteration += 1
        means = (sum(column) / len(rows) for column in zip(*values[:-1], strict=True))
        return {
            **dict(zip(columns, means, strict=True)),
            "lr": rate,
            "grad_norm": values[-1][0],
            "data_wait": waited,
        }

    def losses(self, sample: Sample) -> dict[str, Tensor]:
        """The unweighted losses of one image, by name."""
        scores = self.model(sample.image[None], sample.boxes, sample.roi_masks)
        iou, containment = overlaps(sample.membership, sample.areas)
        return self.criterion(scores, sample, iou, containment, self.generator)

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
            "rng": {"anti_noise": self.generator.get_state(), **random_state()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["step"]
        self.generator.set_state(state["rng"]["anti_noise"])
        set_random_state(state["rng"])


def train(
    trainer: Trainer,
    samples: Iterator[Sample],
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
        while trainer.iteration < max_iter and stop.received is None:
            start = time.perf_counter()
            values = trainer.update(samples)
            averages.add({**values, "seconds": time.perf_counter() - start})
            bar.update()
            last = stop.received is not None or trainer.iteration == max_iter
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
    return stop.received


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
