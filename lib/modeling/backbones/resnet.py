"""Residual trunks made of torchvision's blocks, in the published names.

`res1` is the stem (convolution, batch norm, ReLU and, usually, max pooling), `res2` is
torchvision's `layer1`, `res3` its `layer2`, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, WeightsEnum
from torchvision.models.resnet import BasicBlock, Bottleneck

from lib.modeling.backbones.trunk import Trunk, download_weights

Block = type[BasicBlock] | type[Bottleneck]


class ResNet(Trunk):
    """A stem and one residual stage for every entry of `widths`.

    Args:
        block: torchvision's BasicBlock or Bottleneck.
        depths: blocks of every stage.
        widths: channels of every stage before the block's expansion; the stem has widths[0].
        strides: stride of every stage.
        stem_pool: 3x3 max pooling of stride 2 after the stem's convolution, also of stride 2.
        frozen: names of the parts that do not train, of `res1`, `res2`, ...
        frozen_bn: see Trunk.
        imagenet: torchvision's weights of this very trunk, if there are any.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[int],
        stem_pool: bool = True,
        frozen: Sequence[str] = (),
        frozen_bn: bool = True,
        imagenet: WeightsEnum | None = None,
    ) -> None:
        if not len(depths) == len(widths) == len(strides):
            raise ValueError(
                "a ResNet needs as many depths as widths and strides, got "
                f"{tuple(depths)}, {tuple(widths)}, {tuple(strides)}; check model.backbone_args"
            )
        stem_stride = 4 if stem_pool else 2
        super().__init__(widths[-1] * block.expansion, stem_stride * prod(strides), frozen_bn)
        self.imagenet = imagenet
        channels = widths[0]
        stem = [
            nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        if stem_pool:
            stem.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        self.res1 = nn.Sequential(*stem)
        self.stages = [f"res{number}" for number in range(2, len(widths) + 2)]
        self.stage_channels = [width * block.expansion for width in widths]
        self.stage_strides = [stem_stride * prod(strides[: n + 1]) for n in range(len(strides))]
        for name, depth, width, stride in zip(self.stages, depths, widths, strides, strict=True):
            self.add_module(name, _stage(block, depth, channels, width, stride))
            channels = width * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.freeze(self.get_submodule(name) for name in frozen)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        features = self.res1(images)
        for name in self.stages:
            features = self.get_submodule(name)(features)
        return features

    def own_name(self, name: str) -> str | None:
        """Translates torchvision's names: conv1, bn1, layer1..layer4."""
        name = re.sub(r"^conv1\.", "res1.0.", name)
        name = re.sub(r"^bn1\.", "res1.1.", name)
        return re.sub(r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}.", name)

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        if self.imagenet is None:
            return super().imagenet_weights()
        return download_weights(self.imagenet)


def resnet50(frozen_bn: bool = True) -> ResNet:
    """ResNet-50 up to torchvision's layer3: stride 16, 1024 channels.

    The stem and the first stage do not train, as published; the affine parameters of the later
    batch norms do.
    """
    return ResNet(
        Bottleneck,
        depths=(3, 4, 6),
        widths=(64, 128, 256),
        strides=(1, 2, 2),
        frozen=("res1", "res2"),
        frozen_bn=frozen_bn,
        imagenet=ResNet50_Weights.IMAGENET1K_V1,
    )


def resnet18(
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (2, 2, 2, 2),
    strides: Sequence[int] = (1, 2, 2, 2),
    stem_pool: bool = True,
    frozen_bn: bool = True,
) -> ResNet:
    """A small trunk for CPUs: a whole ResNet-18 or a narrower, shorter or finer one; all trains."""
    usual = (tuple(widths), tuple(depths)) == ((64, 128, 256, 512), (2, 2, 2, 2))
    return ResNet(
        BasicBlock,
        depths=depths,
        widths=widths,
        strides=strides,
        stem_pool=stem_pool,
        frozen_bn=frozen_bn,
        imagenet=ResNet18_Weights.IMAGENET1K_V1 if usual else None,
    )


def _stage(block: Block, depth: int, channels: int, width: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or channels != width * block.expansion:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, width * block.expansion, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(width * block.expansion),
        )
    first = block(channels, width, stride, shortcut)
    rest = [block(width * block.expansion, width) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)
