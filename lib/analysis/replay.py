"""Computes an update that gave NaN or infinity again and finds where that came up first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib.config import Config
from lib.engine.build import build_trainer
from lib.engine.checkpoint import CheckpointError, load_checkpoint, load_model
from lib.engine.training import FAILED_UPDATE
from lib.modeling.criterion import CIMCriterion, score_image
from lib.modeling.model_builder import build_model
from lib.structures import Sample


def load_failed_update(path: str | Path) -> dict[str, Any]:
    """Reads the failed update of a CIM training; its `samples` are Samples again.

    Raises:
        FileNotFoundError, CheckpointError: there is no such file, or it is another.
    """
    content = load_checkpoint(path)
    needed = {"step", "batch_size", "seed", "samples", "losses", "told", "config", "class_names"}
    names = {field.name for field in dataclasses.fields(Sample)}
    missing = needed - content.keys()
    if missing or any(set(sample) != names for sample in content["samples"]):
        raise CheckpointError(
            f"{path}: not the failed update of a CIM training "
            f"({', '.join(sorted(missing)) or 'other samples'} missing); expected the "
            f"{FAILED_UPDATE} of a run"
        )
    return {**content, "samples": [Sample(**sample) for sample in content["samples"]]}


@dataclass(frozen=True)
class Replayed:
    """Result of computing one image of a failed update again."""

    file_name: str
    losses: dict[str, list[float]]
    """Unweighted, by name; several values are those of the stages."""
    first_output: str | None
    """First place on the way to the losses with NaN or infinity; None if there is none."""
    first_gradient: str | None
    """The same for the backward pass."""
    grad_norm: float
    """May overflow although no gradient is infinite."""


def replay_update(
    failed: Mapping[str, Any], config: Config, source: Path, device: str
) -> Iterator[Replayed]:
    """Computes every image of a failed update of CIM again, as training did.

    Args:
        failed: of `load_failed_update`.
        config: may differ from that of the training.
        source: the file of `failed`, for messages.

    Raises:
        CheckpointError: the weights do not fit the configuration.
    """
    model = build_model(config.model, len(failed["class_names"]), pretrained=False)
    load_model(model, failed["model"], source)
    trainer = build_trainer(config, model, device)
    trainer.seed, first = failed["seed"], failed["step"] * failed["batch_size"]
    criterion = CIMCriterion(trainer.backward.criterion.miner, by_stage=True)
    return replay(
        trainer.model,
        lambda *image: criterion(*score_image(*image)),
        trainer.loss_weights,
        [sample.to(device) for sample in failed["samples"]],
        [trainer.generator(first + number) for number in range(len(failed["samples"]))],
    )


def replay(
    model: nn.Module,
    losses_by_stage: Callable[[nn.Module, Any, torch.Generator], dict[str, Tensor]],
    loss_weights: Mapping[str, float],
    samples: Sequence[Any],
    generators: Sequence[torch.Generator],
) -> Iterator[Replayed]:
    """Computes the images of an update again and watches every part of the network.

    Args:
        losses_by_stage: (model, sample, generator) -> unweighted losses by name, each one value
            or (S,).
        samples: on the model's device.
        generators: for each of them, see Trainer.generator.
    """
    for sample, generator in zip(samples, generators, strict=True):
        model.zero_grad()
        with _watched(model) as (outputs, gradients):
            losses = losses_by_stage(model, sample, generator)
            for name, value in losses.items():
                _note(value, f"the loss {name}", outputs)
            sum(loss_weights[name] * value.sum() for name, value in losses.items()).backward()
        given = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for name, gradient in given.items():
            _note(gradient, f"the gradient of {name}", gradients)
        yield Replayed(
            file_name=sample.file_name,
            losses={name: value.detach().reshape(-1).tolist() for name, value in losses.items()},
            first_output=next(iter(outputs), None),
            first_gradient=next(iter(gradients), None),
            grad_norm=float(nn.utils.get_total_norm(list(given.values()))),
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinity."""
    return [name for name, value in tensors.items() if not value.isfinite().all()]


@contextmanager
def _watched(model: nn.Module) -> Iterator[tuple[list[str], list[str]]]:
    """Lists, in order, the parts whose outputs, and those whose gradients, are not finite.

    Parts are the innermost modules; a fault between two of them shows in the next one.
    """
    outputs: list[str] = []
    gradients: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            for value in filter(_is_tensor, inputs):
                _note(value, f"the input of {name}", outputs)
            if not _is_tensor(output):
                return
            _note(output, f"the output of {name}", outputs)
            if output.requires_grad:
                text = f"the gradient at the output of {name}"
                output.register_hook(lambda grad: _note(grad, text, gradients))

        return module.register_forward_hook(hook)

    parts = [(n, module) for n, module in model.named_modules() if not any(module.children())]
    handles = [watch(name, module) for name, module in parts]
    try:
        yield outputs, gradients
    finally:
        for handle in handles:
            handle.remove()


def _note(value: Tensor, what: str, found: list[str]) -> None:
    if bad := value.numel() - int(value.isfinite().sum()):
        found.append(f"{what} ({bad} of {value.numel()} values)")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
