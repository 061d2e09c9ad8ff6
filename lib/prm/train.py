"""Training the peak response network on image-level labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lib.config import PRMConfig
from lib.data.transforms import Flip
from lib.files import atomic_file
from lib.prm.images import SquareImages, iterate_batches
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import class_scores

logger = logging.getLogger(__name__)

Batch = tuple[list[int], list[Flip]]


def train_prm(
    net: PeakResponseNet,
    images: SquareImages,
    recipe: PRMConfig,
    seed: int,
    state_file: Path,
    made_from: Mapping[str, Any],
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> None:
    """Trains `net` in place by multi-label soft-margin loss on its class scores.

    After every epoch the state is written to `state_file`; training resumes from it if it was
    `made_from` the same. On a CPU an interrupted training ends with the same numbers as an
    uninterrupted one.

    Args:
        images: each with at least one label.
        made_from: plain values that the result depends on (configuration, data).

    Raises:
        ValueError: there are no images, or an image cannot be read.
        FloatingPointError: the loss is not finite; `state_file` keeps the epoch before.
    """
    if not len(images):
        raise ValueError("there are no images with labels to train the PRM on")
    net.to(device)
    backbone = [p for p in net.backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        [
            {"params": backbone, "lr": recipe.base_lr * recipe.backbone_lr_factor},
            {"params": net.classifier.parameters(), "lr": recipe.base_lr},
        ],
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    full_lr = [group["lr"] for group in optimizer.param_groups]
    first_epoch = _resume(net, optimizer, state_file, made_from)
    labels = images.image_labels
    updates = len(epoch_batches(len(images), recipe, seed, epoch=0))
    with tqdm(
        total=recipe.epochs * updates, initial=first_epoch * updates, desc="PRM", unit="update"
    ) as bar:
        for epoch in range(first_epoch, recipe.epochs):
            net.train()
            batches = epoch_batches(len(images), recipe, seed, epoch)
            losses = []
            for (indices, _), batch in zip(
                batches, iterate_batches(images, batches, num_workers), strict=True
            ):
                done = (epoch * updates + len(losses)) / (recipe.epochs * updates)
                for group, lr in zip(optimizer.param_groups, full_lr, strict=True):
                    group["lr"] = lr * _lr_factor(recipe.schedule, done)
                loss = F.multilabel_soft_margin_loss(
                    class_scores(net(batch.to(device))), labels[indices].to(device)
                )
                _check(loss, epoch, [images.records[i].file_name for i in indices])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                bar.update()
                bar.set_postfix(epoch=epoch + 1, loss=f"{np.mean(losses[-20:]):.3f}")
            logger.info("PRM epoch %d of %d: loss %.4f", epoch + 1, recipe.epochs, np.mean(losses))
            with atomic_file(state_file) as file:
                state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "epoch": epoch + 1, "made_from": dict(made_from)}, file)


def epoch_batches(num_images: int, recipe: PRMConfig, seed: int, epoch: int) -> list[Batch]:
    """(image indices, flips) of every update of an epoch; the same for the same seed and epoch.

    Every image comes once, except those of a last batch that is not full (too few for batch
    norms); they are others in the next epoch.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(num_images, generator=generator).tolist()
    drawn = torch.randint(len(recipe.flips), (num_images,), generator=generator).tolist()
    size = min(recipe.images_per_update, num_images)
    return [
        (order[at : at + size], [recipe.flips[f] for f in drawn[at : at + size]])
        for at in range(0, num_images - size + 1, size)
    ]


def score_images(
    net: PeakResponseNet,
    images: SquareImages,
    batch_size: int,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> np.ndarray:
    """Class scores of every image.

    Returns:
        (N, C) float32.
    """
    net.to(device).eval()
    indices = list(range(len(images)))
    chunks = [indices[at : at + batch_size] for at in indices[::batch_size]]
    batches = [(chunk, ["none"] * len(chunk)) for chunk in chunks]
    with torch.no_grad():
        scores = [
            class_scores(net(batch.to(device))).cpu()
            for batch in tqdm(
                iterate_batches(images, batches, num_workers),
                total=len(batches),
                desc="class scores",
            )
        ]
    return torch.cat(scores).numpy()


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of every class as a ranking of images.

    The mean, over the images that have the class, of the precision at that image's rank; images
    of equal score share the rank of the last of them.

    Args:
        scores: (N, C).
        labels: (N, C) in {0, 1}.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class that no image has.
    """
    result = np.full(labels.shape[1], np.nan)
    for c in range(labels.shape[1]):
        positive = scores[labels[:, c] > 0, c]
        if len(positive):
            rank = (scores[:, c][None] >= positive[:, None]).sum(axis=1)
            hits = (positive[None] >= positive[:, None]).sum(axis=1)
            result[c] = (hits / rank).mean()
    return result


def _lr_factor(schedule: str, done: float) -> float:
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * done))


def _resume(
    net: PeakResponseNet,
    optimizer: torch.optim.Optimizer,
    state_file: Path,
    made_from: Mapping[str, Any],
) -> int:
    """Loads the state of an interrupted training; returns the number of finished epochs."""
    if not state_file.is_file():
        return 0
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    if state["made_from"] != dict(made_from):
        logger.info("%s: of other settings or data; training starts from the beginning", state_file)
        return 0
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info("%s: resumed after epoch %d", state_file, state["epoch"])
    return state["epoch"]


def _check(loss: Tensor, epoch: int, names: list[str]) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the PRM's loss became {loss.item()} in epoch {epoch + 1}, images "
            f"{', '.join(names)}; lower prm.base_lr and start again"
        )
