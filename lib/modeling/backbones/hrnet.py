"""The HRNet classification network (Wang et al., arXiv 1908.07919), in the names of its checkpoint.

Branches of growing stride run side by side and exchange their features after every module. What
follows them in the classification network (`incre_modules`, `downsamp_modules`, `final_layer`)
brings all four to stride 32 and 2048 channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck

from lib.modeling.backbones.backbone import Backbone, Layer

STRIDE = 32
"""Image sides are padded to a multiple of it, so that the branches' sizes agree."""


class HRNet(Backbone):
    """Stem, four stages, and the head that merges the branches; by default HRNet-W48 as published.

    # PARITY: stem, stages 1 and 2 and the first transition run without gradient, although the
    # batch norms of the stem and the first transition count as trainable, as does `classifier`
    # (of ImageNet's classes), which takes no part at all. They never get a gradient.

    Args:
        width: channels of the first branch; the others have 2, 4 and 8 times as many.
        depths: modules of stages 2, 3 and 4.
        blocks: residual blocks of a branch in one module.
    """

    has_idle_parameters = True

    def __init__(self, width: int = 48, depths: Sequence[int] = (1, 4, 3), blocks: int = 4) -> None:
        super().__init__([Layer(128, 4), Layer(256, 8), Layer(512, 16), Layer(2048, STRIDE)])
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        more = [Bottleneck(256, 64) for _ in range(blocks - 1)]
        self.layer1 = nn.Sequential(_bottleneck(64, 64), *more)
        self.transition1 = _transition([256], widths[:2])
        self.stage2 = _stage(widths[:2], depths[0], blocks)
        self.transition2 = _transition(widths[:2], widths[:3])
        self.stage3 = _stage(widths[:3], depths[1], blocks)
        self.transition3 = _transition(widths[:3], widths)
        self.stage4 = _stage(widths, depths[2], blocks)
        heads = (32, 64, 128, 256)
        self.incre_modules = nn.ModuleList(
            nn.Sequential(_bottleneck(w, head)) for w, head in zip(widths, heads, strict=True)
        )
        self.downsamp_modules = nn.ModuleList(
            _unit(4 * below, 4 * above, stride=2, bias=True) for below, above in pairwise(heads)
        )
        self.final_layer = nn.Sequential(
            nn.Conv2d(1024, 2048, kernel_size=1), nn.BatchNorm2d(2048), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Linear(2048, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for frozen in (self.conv1, self.conv2, self.layer1, self.stage2):
            frozen.requires_grad_(False)
        self.train()

    def compute(self, images: Tensor) -> Iterator[Tensor]:
        """The branches, each merged with the finer ones; the last has `final_layer` behind it.

        Zeros are padded at the right and at the bottom up to multiples of 32.
        """
        height, width = images.shape[-2:]
        images = functional.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
        with torch.no_grad():
            features = functional.relu(self.bn1(self.conv1(images)))
            features = functional.relu(self.bn2(self.conv2(features)))
            branches = _widen(self.transition1, [self.layer1(features)])
            branches = self.stage2(branches)
        branches = self.stage3(_widen(self.transition2, branches))
        branches = self.stage4(_widen(self.transition3, branches))
        merged = self.incre_modules[0](branches[0])
        for down, increase, branch in zip(
            self.downsamp_modules, self.incre_modules[1:], branches[1:], strict=True
        ):
            yield merged
            merged = increase(branch) + down(merged)
        yield self.final_layer(merged)

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        raise ValueError(
            "the ImageNet weights of HRNet-W48 have no stable address to download from; get "
            "hrnetv2_w48_imagenet_pretrained.pth from github.com/HRNet/HRNet-Image-Classification "
            f"and set {self.section}.weights to that file, or to `random`"
        )


class ResolutionModule(nn.Module):
    """Residual blocks on every branch, then every branch receives the sum of all of them.

    Takes and returns one (B, C_i, h / 2^i, w / 2^i) map for every branch i.
    """

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(w, w) for _ in range(blocks))) for w in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        branches = [blocks(maps) for blocks, maps in zip(self.branches, branches, strict=True)]
        return [
            functional.relu(reduce(add, (f(m) for f, m in zip(layers, branches, strict=True))))
            for layers in self.fuse_layers
        ]


def _unit(
    channels: int, width: int, stride: int, bias: bool = False, relu: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=bias)
    activation = [nn.ReLU(inplace=True)] if relu else []
    return nn.Sequential(conv, nn.BatchNorm2d(width), *activation)


def _bottleneck(channels: int, width: int) -> Bottleneck:
    """A torchvision block that changes the channels to 4 * width."""
    conv = nn.Conv2d(channels, 4 * width, kernel_size=1, bias=False)
    shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))
    return Bottleneck(channels, width, downsample=shortcut)


def _stage(widths: Sequence[int], modules: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResolutionModule(widths, blocks) for _ in range(modules)))


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Leads from the branches of a stage to those of the next: one more, of half the size."""
    layers: list[nn.Module] = [
        nn.Identity() if old == new else _unit(old, new, stride=1)
        for old, new in zip(before, after, strict=False)
    ]
    return nn.ModuleList([*layers, nn.Sequential(_unit(before[-1], after[-1], stride=2))])


def _widen(transition: nn.ModuleList, branches: list[Tensor]) -> list[Tensor]:
    """Applies a transition; the new branch comes from the last one there was."""
    return [layer(branches[min(i, len(branches) - 1)]) for i, layer in enumerate(transition)]


def _exchange(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Brings the maps of branch `source` to the channels and the size of branch `target`."""
    if source == target:
        return nn.Identity()
    if source > target:
        conv = nn.Conv2d(widths[source], widths[target], kernel_size=1, bias=False)
        larger = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return nn.Sequential(conv, nn.BatchNorm2d(widths[target]), larger)
    steps = [_unit(widths[source], widths[source], stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _unit(widths[source], widths[target], stride=2, relu=False))
