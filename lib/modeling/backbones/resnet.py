"""Residual backbones made of torchvision's blocks, under their published names.

The stem (convolution, batch norm, ReLU and, usually, max pooling) is called `res1` in CIM, and the
layers `res2`, `res3`, ... (torchvision's `layer1`, `layer2`, ...). The published PRM numbers its
parts, and Mask R-CNN has torchvision's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from operator import mul

from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from lib.modeling.backbones.backbone import Backbone, Layer, Use

Block = type[BasicBlock] | type[Bottleneck]
Norm = type[nn.BatchNorm2d] | type[FrozenBatchNorm2d]

_STEM: dict[Use, Sequence[str]] = {
    "cim": ("res1.0", "res1.1", "res1.2", "res1.3"),
    "prm": ("0", "1", "2", "3"),
    "pyramid": ("conv1", "bn1", "relu", "maxpool"),
}
_LAYER: dict[Use, tuple[str, int]] = {"cim": ("res", 2), "prm": ("", 4), "pyramid": ("layer", 1)}
"""Name of the layers, and number of the first."""


class ResNet(Backbone):
    """A stem and one residual layer for every entry of `widths`.

    Args:
        block: torchvision's BasicBlock or Bottleneck.
        depths: blocks of every layer.
        widths: channels of every layer before the block's expansion; the stem has widths[0].
        strides: stride of every layer.
        stem_pool: 3x3 max pooling of stride 2 after the stem's convolution, also of stride 2.
        names: whose names the parts have.
        norm: type of the batch norms.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[int],
        stem_pool: bool = True,
        names: Use = "cim",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        if not len(depths) == len(widths) == len(strides):
            raise ValueError(
                "a ResNet needs as many depths as widths and strides, got "
                f"{tuple(depths)}, {tuple(widths)}, {tuple(strides)}"
            )
        stride_of = list(accumulate(strides, mul, initial=4 if stem_pool else 2))[1:]
        super().__init__(
            [Layer(w * block.expansion, s) for w, s in zip(widths, stride_of, strict=True)]
        )
        channels = widths[0]
        stem = nn.Sequential(
            nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False),
            norm(channels),
            nn.ReLU(inplace=True),
        )
        if stem_pool:
            stem.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        self.names = names
        if names == "cim":
            self.res1 = stem
        else:
            for name, part in zip(_STEM[names], stem, strict=False):
                self.add_module(name, part)
        self.stem = list(self._modules)
        word, first = _LAYER[names]
        self.parts = [f"{word}{first + n}" for n in range(len(widths))]
        for name, depth, width, stride in zip(self.parts, depths, widths, strides, strict=True):
            self.add_module(name, _layer(block, depth, channels, width, stride, norm))
            channels = width * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.train()

    def chain(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in (*self.stem, *self.parts)]

    def compute(self, images: Tensor) -> Iterator[Tensor]:
        features = images
        for name in (*self.stem, *self.parts):
            features = self.get_submodule(name)(features)
            if name in self.parts:
                yield features

    def own_name(self, name: str) -> str | None:
        """Translates the names of CIM, the PRM and torchvision into this backbone's."""
        for names in _STEM.values():
            for part, own in zip(names, _STEM[self.names], strict=True):
                if name.startswith(f"{part}."):
                    return own + name.removeprefix(part)
        for word, first in _LAYER.values():
            if found := re.match(rf"{word}(\d+)\.", name):
                own_word, own_first = _LAYER[self.names]
                return f"{own_word}{int(found[1]) - first + own_first}.{name[found.end() :]}"
        return name


class ResNet50(ResNet):
    """ResNet-50 as published.

    CIM takes it up to torchvision's layer3 (stride 16, 1024 channels); the stem and the first layer
    do not train, the affine parameters of the later batch norms do. The PRM trains all four layers.
    Under a pyramid it is torchvision's: all batch norms, the stem and the first layer are frozen.
    """

    has_forms = True

    def __init__(self, use: Use = "cim") -> None:
        layers = 3 if use == "cim" else 4
        super().__init__(
            Bottleneck,
            depths=(3, 4, 6, 3)[:layers],
            widths=(64, 128, 256, 512)[:layers],
            strides=(1, 2, 2, 2)[:layers],
            names=use,
            norm=FrozenBatchNorm2d if use == "pyramid" else nn.BatchNorm2d,
        )
        if use != "prm":
            for name in (*self.stem, self.parts[0]):
                self.get_submodule(name).requires_grad_(False)

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        return self.download(ResNet50_Weights.IMAGENET1K_V1)


class ResNet18(ResNet):
    """A small backbone for CPUs that trains as a whole: ResNet-18, or a narrower or shorter one."""

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        strides: Sequence[int] = (1, 2, 2, 2),
        stem_pool: bool = True,
    ) -> None:
        super().__init__(BasicBlock, depths, widths, strides, stem_pool)
        self.usual = (tuple(widths), tuple(depths)) == ((64, 128, 256, 512), (2, 2, 2, 2))

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        if self.usual:
            return self.download(ResNet18_Weights.IMAGENET1K_V1)
        return super().imagenet_weights()


def _layer(
    block: Block, depth: int, channels: int, width: int, stride: int, norm: Norm
) -> nn.Sequential:
    out, shortcut = width * block.expansion, None
    if stride != 1 or channels != out:
        conv = nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False)
        shortcut = nn.Sequential(conv, norm(out))
    first = block(channels, width, stride, shortcut, norm_layer=norm)
    return nn.Sequential(first, *(block(out, width, norm_layer=norm) for _ in range(depth - 1)))
