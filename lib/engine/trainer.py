"""One update of the weights: the sum of the gradients of a few images (paper, section 4.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lib.engine.checkpoint import random_state, set_random_state
from lib.engine.distributed import ALONE, Ranks, summing_model
from lib.engine.solver import lay_out_momentum, learning_rate, set_learning_rate
from lib.structures import TrainingSample

if TYPE_CHECKING:
    from lib.config import SolverConfig

Numbers = dict[str, float]
Losses = dict[str, Tensor]
"""Losses of one image by name."""
Forward = Callable[[nn.Module, Any, torch.Generator], tuple[Any, ...]]
"""(model, sample on its device, generator) -> arguments of the criterion."""
Criterion = Callable[..., Losses]
"""Gives the unweighted losses of an image."""
Images = Iterator[tuple[Any, torch.Generator]]
"""The images of an update, on the device, each with the generator that draws for it."""
Weigh = Callable[[Losses], tuple[Tensor, Losses]]
"""See `Trainer.weigh`."""
_Item = TypeVar("_Item")


class NonFiniteLossError(FloatingPointError):
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
    backward: Callable[[Images, Weigh], list[Losses]]
    """Adds the gradients of an update's images to the model's and returns their losses: OneByOne,
    or a faster way with the same result."""
    optimizer: torch.optim.Optimizer
    solver: SolverConfig
    loss_weights: Mapping[str, float]
    seed: int = 0
    """Random draws for an image follow from this and the image's place in the stream."""
    device: torch.device = torch.device("cpu")
    ranks: Ranks = ALONE
    """The processes that share the images of an update; the result does not depend on them."""
    iteration: int = 0
    """Updates done."""

    @property
    def first_sample(self) -> int:
        """Place of this rank's next image in the stream of all images.

        From there the rank takes every `ranks.count`-th, so that neither the images of an update
        nor the random draws for them depend on the number of ranks.
        """
        return self.iteration * self.solver.images_per_update + self.ranks.rank

    def update(self, samples: Iterator[TrainingSample]) -> Numbers:
        """Updates the weights once, with the next images of the stream.

        Args:
            samples: the images of this rank, see `first_sample`.

        Returns:
            Mean of every loss and of their weighted sum (`total`) over the images, the learning
            rate `lr`, the norm of the gradient before clipping `grad_norm`, the `seconds` that it
            took, and those that this rank spent waiting for images `data_wait`.

        Raises:
            NonFiniteLossError: before any weight has changed.
        """
        begun, taken, waited = time.perf_counter(), [], 0.0

        def images() -> Images:
            nonlocal waited
            for number in range(self.solver.images_per_update // self.ranks.count):
                start = time.perf_counter()
                taken.append(next(samples))
                waited += time.perf_counter() - start
                place = self.first_sample + number * self.ranks.count
                yield taken[-1].to(self.device, non_blocking=True), self.generator(place)

        self.optimizer.zero_grad()
        of_images = self.backward(images(), self.weigh)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        grad_norm = nn.utils.get_total_norm(gradients, foreach=True)
        losses, told_norm = self._finite(taken, of_images, grad_norm)
        if (limit := self.solver.clip_grad_norm) is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, grad_norm, foreach=True)
        rate = learning_rate(self.solver, self.iteration)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.iteration += 1
        return {
            **{name: sum(one[name] for one in losses) / len(losses) for name in losses[0]},
            "lr": rate,
            "grad_norm": told_norm,
            "data_wait": waited,
            "seconds": time.perf_counter() - begun,
        }

    def weigh(self, losses: Losses) -> tuple[Tensor, Losses]:
        """The weighted sum of an image's losses, and the values of all, with the sum as `total`."""
        total = sum(self.loss_weights[name] * value for name, value in losses.items())
        return total, {n: value.detach() for n, value in {**losses, "total": total}.items()}

    def generator(self, place: int) -> torch.Generator:
        """Draws for the image at `place` of the stream."""
        seed = np.random.SeedSequence([self.seed, place]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))

    def _finite(
        self, samples: list[TrainingSample], losses: list[dict[str, Tensor]], grad_norm: Tensor
    ) -> tuple[list[Numbers], float]:
        """Losses of all images and gradient norm as numbers, checked to be finite.

        Raises:
            NonFiniteLossError: in all ranks.
        """
        # One transfer from the device for all of them.
        flat = [value for one in losses for value in one.values()]
        *numbers, norm = torch.stack([*flat, grad_norm]).tolist()
        rows = [numbers[n : n + len(losses[0])] for n in range(0, len(numbers), len(losses[0]))]
        told = [dict(zip(losses[0], row, strict=True)) for row in rows]
        told = in_order(self.ranks.gather(told))
        finite = [all(map(math.isfinite, one.values())) for one in told]
        if all(finite) and math.isfinite(norm):
            return told, norm
        # All images of the update are gathered, so that it can be replayed.
        samples = in_order(self.ranks.gather([sample.to("cpu") for sample in samples]))
        update = f"update {self.iteration + 1}"
        if all(finite):
            images = ", ".join(sample.file_name for sample in samples)
            text = f"{update}, images {images}: the losses are finite but their gradient is not"
        else:
            fault = finite.index(False)
            values = ", ".join(f"{name} {value:g}" for name, value in told[fault].items())
            text = f"{update}, image {samples[fault].file_name}: a loss is not finite ({values})"
        raise NonFiniteLossError(text, samples, told)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs to continue bit for bit."""
        return {
            "model": self.model.state_dict(),
            "step": self.iteration,
            "batch_size": self.solver.images_per_update,
            "optimizer": self.optimizer.state_dict(),
            "rng": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_momentum(self.optimizer)
        self.iteration = state["step"]
        set_random_state(state["rng"])


def in_order(of_ranks: Sequence[Sequence[_Item]]) -> list[_Item]:
    """Merges the lists of all ranks, undoing `Ranks.share_of`."""
    return [item for together in zip(*of_ranks, strict=True) for item in together]


class OneByOne:
    """Adds up the gradients of an update's images one after the other.

    Among several ranks, the gradients of all are summed with the last image.

    Raises:
        ValueError: the images of an update cannot be shared evenly.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        criterion: Criterion,
        images_per_update: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        if images_per_update % ranks.count:
            raise ValueError(
                f"the {images_per_update} images of an update cannot be shared evenly by "
                f"{ranks.count} processes; start a number of them (gpus=, nnodes=) that divides "
                "images_per_update, of the section solver or refine.solver"
            )
        self.models = [model]
        self.forward, self.criterion = forward, criterion
        self._summing = summing_model(model, ranks) if ranks.count > 1 else None
        self._last = images_per_update // ranks.count - 1

    def __call__(self, images: Images, weigh: Weigh) -> list[Losses]:
        found, model = [], self._summing or self.models[0]
        for number, (sample, generator) in enumerate(images):
            apart = self._summing is not None and number != self._last
            with model.no_sync() if apart else nullcontext():
                total, values = weigh(self.criterion(*self.forward(model, sample, generator)))
                total.backward()
            found.append(values)
        return found


class Together:
    """Makes one pass over all images of an update: wide weights are read once.

    Args:
        forward: (model, samples, generators) -> the criterion's arguments for every image.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[..., list[tuple]], criterion: Criterion
    ) -> None:
        self.models = [model]
        self.forward, self.criterion = forward, criterion

    def __call__(self, images: Images, weigh: Weigh) -> list[Losses]:
        outputs = self.forward(self.models[0], *zip(*images, strict=True))
        totals, found = zip(*(weigh(self.criterion(*output)) for output in outputs), strict=True)
        torch.stack(totals).sum().backward()
        return list(found)
