"""Batch norms folded into the convolutions before them, for inference."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(module: nn.Module) -> None:
    """Makes one convolution of every convolution followed by a batch norm, in place.

    A batch norm that uses its running statistics is an affine map of every channel, so that the
    convolution can do its work: the same numbers up to rounding. What follows what is taken from
    the order in which a module's children were registered, which all backbones keep to. The module
    cannot load a checkpoint afterwards.
    """
    for parent in list(module.modules()):
        for (name, conv), (next_name, norm) in pairwise(list(parent.named_children())):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if norm.training or not norm.track_running_stats:
                raise ValueError(f"{next_name} does not use its running statistics; call eval()")
            setattr(parent, name, fuse_conv_bn_eval(conv, norm))
            setattr(parent, next_name, nn.Identity())
