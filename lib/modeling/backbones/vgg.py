"""VGG-16 without its classifier, in the published names and with the published resolution."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from lib.modeling.backbones.backbone import Backbone, Layer

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of conv1..conv5."""


class VGG(Backbone):
    """conv1..conv5 of VGG-16, as published: stride 8, 512 channels, conv1 and conv2 frozen.

    Nothing pools after conv4 and conv5; the convolutions of conv5 are dilated by 2 instead.

    Args:
        widths: channels of conv1..conv5.
    """

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512, 512)) -> None:
        if len(widths) != len(DEPTHS):
            raise ValueError(f"a VGG needs {len(DEPTHS)} widths, got {tuple(widths)}")
        strides = (2, 4, 8, 8, 8)
        super().__init__([Layer(w, s) for w, s in zip(widths, strides, strict=True)])
        self.conv1 = _section(3, widths[0], DEPTHS[0], pool=True)
        self.conv2 = _section(widths[0], widths[1], DEPTHS[1], pool=True)
        self.conv3 = _section(widths[1], widths[2], DEPTHS[2], pool=True)
        self.conv4 = _section(widths[2], widths[3], DEPTHS[3])
        self.conv5 = _section(widths[3], widths[4], DEPTHS[4], dilation=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for frozen in (self.conv1, self.conv2):
            frozen.requires_grad_(False)

    def chain(self) -> list[nn.Module]:
        return [self.conv1, self.conv2, self.conv3, self.conv4, self.conv5]

    def compute(self, images: Tensor) -> Iterator[Tensor]:
        features = images
        for section in self.chain():
            features = section(features)
            yield features

    def own_name(self, name: str) -> str | None:
        """Translates `features.<index>.*` (torchvision and the caffe VGG-16 as converted for
        PyTorch) and `conv<section>_<number>.*` or `conv<section>_<number>_w` (Caffe, Detectron)."""
        if found := re.fullmatch(r"features\.(\d+)\.(weight|bias)", name):
            return f"{_POSITION[int(found[1])]}.{found[2]}" if int(found[1]) in _POSITION else None
        if found := re.fullmatch(r"conv(\d)_(\d)[._](weight|w|bias|b)", name):
            kind = {"w": "weight", "b": "bias"}[found[3][0]]
            return f"conv{found[1]}.{2 * int(found[2]) - 2}.{kind}"
        return name

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        return self.download(VGG16_Weights.IMAGENET1K_V1)


def _section(
    channels: int, width: int, depth: int, dilation: int = 1, pool: bool = False
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation))
        layers.append(nn.ReLU(inplace=True))
        channels = width
    if pool:
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


_INDICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_POSITION = {
    index: f"conv{section}.{2 * number}"
    for section, indices in enumerate(_INDICES, start=1)
    for number, index in enumerate(indices)
}
"""Name of the convolution at an index of torchvision's `features`."""
