"""One update: the sum of the gradients of a few images (SPEC 6)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lib.engine.checkpoint import random_state, set_random_state
from lib.engine.distributed import ALONE, Ranks, summing_model
from lib.engine.lanes import Lanes
from lib.engine.solver import LearningRate, lay_out_momentum, set_learning_rate
from lib.structures import TrainingSample

Numbers = dict[str, float]
_Item = TypeVar("_Item")


class NonFiniteLossError(RuntimeError):
    """A loss, or the gradient, is NaN or infinite; the text names iteration, image and losses.

    Args:
        samples: all images of the update, on the CPU.
        losses: of each of them.
    """

    def __init__(
        self, text: str, samples: Sequence[TrainingSample], losses: Sequence[Numbers]
    ) -> None:
        super().__init__(
            f"{text}; the last checkpoint is usable; try a lower solver.base_lr or "
            "solver.clip_grad_norm"
        )
        self.samples = samples
        self.losses = losses


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
    ranks: Ranks = ALONE
    """The processes that share the images of an update; the same is true of them."""
    losses_together: Callable[..., list[dict[str, Tensor]]] | None = None
    """(model, samples on `device`, generators) -> losses of every image. If set, a process that is
    alone makes one pass over all images of an update, in place of lanes; the same is true of it."""
    iteration: int = 0
    """Updates done."""

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._shared = self.model
        if self.ranks.count > 1:
            if self.images_per_update % self.ranks.count:
                raise ValueError(
                    f"the {self.images_per_update} images of an update cannot be shared evenly by "
                    f"{self.ranks.count} processes; start a number of them (gpus=, nnodes=) that "
                    "divides images_per_update, of the section solver or refine.solver"
                )
            self._shared, self.num_lanes = summing_model(self.model, self.ranks), 1
        self._own_images = self.images_per_update // self.ranks.count
        self.lanes = Lanes(self._shared, min(self.num_lanes, self._own_images))

    def update(self, samples: Iterator[TrainingSample]) -> Numbers:
        """Takes the next images of the stream and makes one update of the weights.

        Args:
            samples: the images of this rank, see `first_sample`.

        Returns:
            Mean of every loss and of their weighted sum (`total`) over the images, the learning
            rate `lr`, the norm of the gradient before clipping `grad_norm`, and the seconds that
            this rank spent waiting for images `data_wait`.

        Raises:
            NonFiniteLossError: before any weight has changed.
        """
        rate = self.learning_rate(self.iteration)
        self.lanes.drop_gradients()
        together = self.losses_together is not None and self.ranks.count == 1
        images, pending, waited = [], [], 0.0
        try:
            for number in range(self._own_images):
                start = time.perf_counter()
                sample = next(samples)
                waited += time.perf_counter() - start
                images.append(sample)
                if not together:
                    pending.append(self.lanes.submit(number, self._add_gradient, sample, number))
        finally:
            self.lanes.finish()
        if together:
            of_images = self._gradients_together(images)
        else:
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

    @property
    def first_sample(self) -> int:
        """Where in the stream of all images this rank's next one stands.

        From there on it takes every `ranks.count`-th: which images an update sums, and what is
        drawn for each, does not depend on the number of ranks.
        """
        return self.iteration * self.images_per_update + self.ranks.rank

    def _add_gradient(
        self, model: nn.Module, sample: TrainingSample, number: int
    ) -> dict[str, Tensor]:
        """Adds the gradient of this rank's image `number` to that of `model`.

        Returns:
            The image's losses and their sum.
        """
        sample = sample.to(self.device, non_blocking=True)
        generator = self.generator(self.first_sample + number * self.ranks.count)
        with self._sent_after_the_last(number):
            losses = self.losses(model, sample, generator)
            total = sum(self.loss_weights[name] * value for name, value in losses.items())
            total.backward()
        return {name: value.detach() for name, value in {**losses, "total": total}.items()}

    def _gradients_together(self, samples: Sequence[TrainingSample]) -> list[dict[str, Tensor]]:
        """`_add_gradient` for all images of the update in one pass."""
        samples = [sample.to(self.device, non_blocking=True) for sample in samples]
        generators = [self.generator(self.first_sample + n) for n in range(len(samples))]
        of_images = self.losses_together(self.model, samples, generators)
        totals = [
            sum(self.loss_weights[name] * value for name, value in losses.items())
            for losses in of_images
        ]
        torch.stack(totals).sum().backward()
        return [
            {name: value.detach() for name, value in {**losses, "total": total}.items()}
            for losses, total in zip(of_images, totals, strict=True)
        ]

    def _sent_after_the_last(self, number: int) -> AbstractContextManager:
        """Ranks add up their gradients once an update, in the backward pass of the last image."""
        if self.ranks.count > 1 and number < self._own_images - 1:
            return self._shared.no_sync()
        return nullcontext()

    def generator(self, place: int) -> torch.Generator:
        """Draws for the image at `place` of the stream."""
        seed = np.random.SeedSequence([self.seed, place]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))

    def _finite(
        self, samples: list[TrainingSample], losses: list[dict[str, Tensor]], grad_norm: Tensor
    ) -> tuple[list[Numbers], float]:
        """Losses of all images and gradient norm as numbers, after a look whether they are.

        Raises:
            NonFiniteLossError: in all ranks.
        """
        # One transfer from the device for all of them.
        flat = [value for one in losses for value in one.values()]
        *numbers, norm = torch.stack([*flat, grad_norm]).tolist()
        rows = [numbers[n : n + len(losses[0])] for n in range(0, len(numbers), len(losses[0]))]
        told = [dict(zip(losses[0], row, strict=True)) for row in rows]
        told = in_order(self.ranks.gather(told))
        fault = next((n for n, one in enumerate(told) if not _all_finite(one)), None)
        if fault is None and math.isfinite(norm):
            return told, norm
        # What led to it is gathered whole, so that it can be replayed.
        samples = in_order(self.ranks.gather([sample.to("cpu") for sample in samples]))
        update = f"update {self.iteration + 1}"
        if fault is None:
            images = ", ".join(sample.file_name for sample in samples)
            text = f"{update}, images {images}: the losses are finite but their gradient is not"
        else:
            values = ", ".join(f"{name} {value:g}" for name, value in told[fault].items())
            text = f"{update}, image {samples[fault].file_name}: a loss is not finite ({values})"
        raise NonFiniteLossError(text, samples, told)

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
        lay_out_momentum(self.optimizer)
        self.iteration = state["step"]
        set_random_state(state["rng"])


def in_order(of_ranks: Sequence[Sequence[_Item]]) -> list[_Item]:
    """What was shared out among ranks, every rank's list, in its order before that."""
    return [item for together in zip(*of_ranks, strict=True) for item in together]


def _all_finite(values: Numbers) -> bool:
    return all(map(math.isfinite, values.values()))
