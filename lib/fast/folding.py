"""Batch norms folded into the convolutions before them, for inference."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference of folded features, relative to the largest plain one."""

_PROBE = (2, 3, 96, 128)


@torch.no_grad()
def fold_batch_norms(module: nn.Module) -> bool:
    """Folds every batch norm that follows a convolution into it, in place.

    With its running statistics a batch norm is an affine map of every channel, which the
    convolution can do: the same numbers up to rounding. Noise passed through the module shows which
    batch norm follows which convolution. It is passed once more to compare: where the features
    differ (a convolution ignores its bias, or its output is used twice), all stays as it was, with
    a warning. Both times a GPU computes without TF32, whose rounding alone exceeds `TOLERANCE` in a
    deep network. The module cannot load a checkpoint afterwards.

    Args:
        module: a backbone in evaluation mode.

    Returns:
        Whether the batch norms are folded.

    Raises:
        ValueError: a batch norm does not use its running statistics.
    """
    for name, norm in module.named_modules():
        if isinstance(norm, nn.BatchNorm2d) and (norm.training or not norm.track_running_stats):
            raise ValueError(f"{name} does not use its running statistics; call eval()")
    like = next(module.parameters())
    noise = torch.randn(_PROBE, generator=torch.Generator().manual_seed(0)).to(like)
    with _without_tf32():
        pairs, plain = _followers(module, noise)
        parents = {child: parent for parent in module.modules() for child in parent.children()}
        undo = [_fold(conv, norm, parents[norm]) for conv, norm in pairs]
        agree = not pairs or _agree(module(noise), plain)
    if not agree:
        for restore in undo:
            restore()
        logger.warning(
            "%s: features differ after folding its batch norms; it is used unfolded, which is "
            "slower and otherwise the same",
            type(module).__name__,
        )
    return agree


@contextmanager
def _without_tf32() -> Iterator[None]:
    """cuDNN computes float32 convolutions in float32, whatever is set."""
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def _followers(
    module: nn.Module, images: Tensor
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Convolutions with the batch norm that takes their output, and the module's own output."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are kept: an id stays theirs
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def convolved(conv: nn.Conv2d, _: object, output: Tensor) -> None:
        made[id(output)] = conv, output
        calls[conv] += 1

    def to_normalise(norm: nn.BatchNorm2d, args: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if id(args[0]) in made:
            pairs.append((made[id(args[0])][0], norm))

    hooks = [
        part.register_forward_hook(convolved)
        if isinstance(part, nn.Conv2d)
        else part.register_forward_pre_hook(to_normalise)
        for part in module.modules()
        if isinstance(part, (nn.Conv2d, nn.BatchNorm2d))
    ]
    try:
        features = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [(c, n) for c, n in pairs if calls[c] == calls[n] == 1], features


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, parent: nn.Module) -> Callable[[], None]:
    """Moves a batch norm into a convolution; returns what undoes it."""
    weight, bias = conv.weight, conv.bias
    (name,) = (name for name, child in parent.named_children() if child is norm)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    # timm's batch norms have their activation inside.
    activation = getattr(norm, "act", None)
    setattr(parent, name, nn.Identity() if activation is None else activation)

    def restore() -> None:
        conv.weight, conv.bias = weight, bias
        setattr(parent, name, norm)

    return restore


def _agree(features: Tensor, plain: Tensor) -> bool:
    return bool((features - plain).abs().max() <= TOLERANCE * plain.abs().max())
