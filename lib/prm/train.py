"""Training the peak response network on image-level labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lib.config import PRMConfig
from lib.data.coco import ImageRecord
from lib.data.transforms import Flip
from lib.fast.feature_cache import FeatureCache, allowed_features, plan_features
from lib.files import atomic_file
from lib.prm.images import SquareImages, iterate_batches
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import class_scores
from lib.provenance import MadeFrom, changes, file_fingerprint, fingerprint, listed

logger = logging.getLogger(__name__)

Batch = tuple[list[int], list[Flip]]


def train_prm(
    net: PeakResponseNet,
    images: SquareImages,
    recipe: PRMConfig,
    seed: int,
    state_file: Path,
    made_from: MadeFrom,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    overwrite: bool = False,
    kept: FeatureCache | None = None,
) -> None:
    """Trains `net` in place by multi-label soft-margin loss on its class scores.

    Writes everything needed to resume to `state_file` after every epoch, and starts from there. On
    a CPU an interrupted training ends with the same numbers as an uninterrupted one.

    Args:
        images: each with at least one label.
        made_from: the record of the result, see lib/provenance.py.
        overwrite: begin anew where `state_file` was made from something else.
        kept: see `kept_features`; made for this `net`.

    Raises:
        ValueError: there are no images, an image cannot be read, or `state_file` was made from
            something else.
        FloatingPointError: the loss is not finite; `state_file` keeps the epoch before.
    """
    if not len(images):
        raise ValueError("there are no images with labels to train the PRM on")
    net.to(device)
    backbone = [p for p in net.backbone.parameters() if p.requires_grad]
    base_lr = scaled_base_lr(recipe, num_classes=images.image_labels.shape[1])
    optimizer = torch.optim.SGD(
        [
            {"params": backbone, "lr": base_lr * recipe.backbone_lr_factor},
            {"params": net.classifier.parameters(), "lr": base_lr},
        ],
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    full_lr = [group["lr"] for group in optimizer.param_groups]
    first_epoch = _resume(net, optimizer, state_file, made_from, overwrite)
    labels = images.image_labels
    updates = len(epoch_batches(len(images), recipe, seed, epoch=0))
    total = recipe.epochs * updates
    with tqdm(total=total, initial=first_epoch * updates, desc="PRM", unit="update") as bar:
        for epoch in range(first_epoch, recipe.epochs):
            net.train()
            batches = epoch_batches(len(images), recipe, seed, epoch)
            losses = []
            read = iterate_batches(images, batches, num_workers)
            for (indices, _), batch in zip(batches, read, strict=True):
                done = (epoch * updates + len(losses)) / total
                for group, lr in zip(optimizer.param_groups, full_lr, strict=True):
                    group["lr"] = lr * _lr_factor(recipe.schedule, done)
                loss = F.multilabel_soft_margin_loss(
                    class_scores(response(net, batch.to(device), kept)), labels[indices].to(device)
                )
                if not torch.isfinite(loss):
                    names = ", ".join(images.records[i].file_name for i in indices)
                    raise FloatingPointError(
                        f"the PRM's loss became {loss.item()} in epoch {epoch + 1}, images "
                        f"{names}; lower prm.base_lr and start again"
                    )
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


def scaled_base_lr(recipe: PRMConfig, num_classes: int) -> float:
    """The full learning rate for data with so many classes."""
    return recipe.base_lr * max(1.0, num_classes / (recipe.base_lr_classes or num_classes))


def kept_features(
    net: PeakResponseNet,
    images: SquareImages,
    recipe: PRMConfig,
    setting: float | None,
    root: Path,
    device: torch.device | str = "cpu",
) -> FeatureCache | None:
    """A cache of what the backbone has frozen in front, if wanted and of use for a training.

    Args:
        setting: `runtime.feature_cache_gb`.
        root: the data root.
    """
    net.train()
    pixels = len(images) * images.size**2 * len(recipe.flips)
    uses = recipe.epochs / len(recipe.flips)
    limit = allowed_features(setting, net.backbone, device)
    return plan_features(net.backbone, limit, pixels, uses, root)


def response(net: PeakResponseNet, images: Tensor, kept: FeatureCache | None) -> Tensor:
    """`net(images)`"""
    if kept is None:
        return net(images)
    return net.smoothed(net.classifier(kept(net.backbone, images)))


def prm_made_from(
    settings: PRMConfig, seed: int, images: Sequence[ImageRecord], content: Mapping[str, str]
) -> dict[str, Any]:
    """The record of a PRM, see lib/provenance.py.

    Args:
        images: the training images, in order.
        content: their fingerprints, by file name.
    """
    weights = Path(settings.weights)
    of_clusters = {"peak_thresh", "peak_thresh_relative", "clusters"}
    return {
        "prm": settings.model_dump(mode="json", exclude=of_clusters),
        "run": {"seed": seed},
        "weights": file_fingerprint(weights) if weights.is_file() else settings.weights,
        "images": fingerprint([content[image.file_name] for image in images]),
        "image_labels": fingerprint([image.image_labels for image in images]),
    }


def is_finished(path: Path, made_from: MadeFrom, num_classes: int, overwrite: bool) -> bool:
    """Whether there is a trained PRM at `path` that is up to date.

    A published one, or one of an earlier version, does not say what it was made from; it is
    accepted with a warning.

    Args:
        overwrite: returns False, with a warning, instead of raising an error.

    Raises:
        ValueError: the file is no PRM, or was made from something else.
    """
    if not path.is_file():
        return False
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before = content.get("made_from", {})
        found = len(content.get("model", content)["0.classifier.0.weight"])
    except Exception as error:  # torch.load has no error type of its own
        fault = f"not a PRM checkpoint ({error})"
    else:
        if found != num_classes:
            fault = f"a PRM of {found} classes, the data set has {num_classes}"
        elif "image_labels" not in before:
            fault = "does not say what it was made from (published, or of an earlier version)"
            if not overwrite:
                logger.warning("%s: %s, and is taken as it is", path, fault)
                return True
        elif told := changes(before, made_from):
            fault = f"made from something else: {listed(told)}"
        else:
            return True
    if not overwrite:
        raise ValueError(f"{path}: {fault}; give --overwrite to train anew, or another --output")
    logger.warning("%s: %s; trained anew", path, fault)
    return False


def epoch_batches(num_images: int, recipe: PRMConfig, seed: int, epoch: int) -> list[Batch]:
    """(image indices, flips) of every update of an epoch; the same for the same seed and epoch.

    Every image comes once, except those of a last batch that is not full (too few for batch norms),
    which change from epoch to epoch.
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
    kept: FeatureCache | None = None,
) -> np.ndarray:
    """Class scores of every image.

    Args:
        kept: as for `train_prm`.

    Returns:
        (N, C) float32.
    """
    net.to(device).eval()
    chunks = [chunk.tolist() for chunk in torch.arange(len(images)).split(batch_size)]
    batches = [(chunk, ["none"] * len(chunk)) for chunk in chunks]
    read = iterate_batches(images, batches, num_workers)
    with torch.no_grad():
        scores = [
            class_scores(response(net, batch.to(device), kept)).cpu()
            for batch in tqdm(read, "class scores", len(batches))
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
    made_from: MadeFrom,
    overwrite: bool,
) -> int:
    """Loads the state of an interrupted training; returns the number of finished epochs."""
    if not state_file.is_file():
        return 0
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    if told := changes(state["made_from"], made_from):
        if not overwrite:
            raise ValueError(
                f"{state_file}: begun from something else: {listed(told)}; give --overwrite to "
                "begin anew, or another --output"
            )
        logger.info("%s: begun from something else: %s; begun anew", state_file, listed(told))
        return 0
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info("%s: resuming after epoch %d", state_file, state["epoch"])
    return state["epoch"]
