"""The peak response network: a fully convolutional classifier whose response maps have peaks.

Zhou et al., "Weakly Supervised Instance Segmentation using Class Peak Response", CVPR 2018.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import Bottleneck

from lib.config import PRMConfig
from lib.modeling.backbones import Trunk, read_state_dict
from lib.modeling.backbones.resnet import ResNet, resnet18

TrunkName = Literal["resnet50", "resnet18"]

_FEATURES = "0.features."
# The published network numbers its parts as torchvision's children are numbered.
_PUBLISHED_PARTS = {"0": "res1.0", "1": "res1.1", "4": "res2", "5": "res3", "6": "res4"}

_OPTIONS = {
    "model.weights": "prm.weights",
    "model.backbone_args": "prm.trunk_args",
    "model.backbone": "prm.trunk",
}


class PeakResponseNet(nn.Sequential):
    """Class response maps, upsampled (SPEC 8).

    The one child is called `0` as in the published state dict (`0.features.*`,
    `0.classifier.0.*`).

    Args:
        num_classes: C.
        trunk: `resnet50` (all four stages, stride 32, published names) or `resnet18` (the very
            trunk of lib/modeling/backbones, so that its weights can be handed on).
        trunk_args: options of the `resnet18` trunk, for example widths.
        upsample: factor between the trunk's cells and the response maps.
        smooth: side of an average filter on the trunk's cells, odd; 1 is none, as published. It
            joins the peaks that would ring around one small discriminative part.
        weights: what the trunk starts from: `imagenet`, `random`, or the path of a checkpoint.

    Raises:
        ValueError: an unknown trunk, options that do not fit it, an even `smooth`, or weights
            that do not fit.
        FileNotFoundError: weights that are not there or cannot be downloaded.
    """

    def __init__(
        self,
        num_classes: int,
        trunk: TrunkName = "resnet50",
        trunk_args: Mapping[str, Any] | None = None,
        upsample: int = 8,
        smooth: int = 1,
        weights: str = "random",
    ) -> None:
        if smooth % 2 == 0:
            raise ValueError(f"prm.smooth must be odd, got {smooth}")
        features = _make_trunk(trunk, trunk_args or {})
        if weights != "random":
            _load_trunk(features, weights)
        super().__init__(_ClassResponse(features, num_classes, published=trunk == "resnet50"))
        self.num_classes = num_classes
        self.upsample = upsample
        self.smooth = smooth

    @property
    def trunk(self) -> nn.Module:
        return self[0].features

    @property
    def classifier(self) -> nn.Module:
        return self[0].classifier

    def forward(self, images: Tensor) -> Tensor:
        """Response maps (logits) of normalised images.

        Args:
            images: (B, 3, S, S) float32.

        Returns:
            (B, C, s, s) float32 with s = upsample * ceil(S / stride); the corner cells of the
            trunk lie on the corners of the map.
        """
        response = self[0](images)
        if self.smooth > 1:
            response = F.avg_pool2d(
                response, self.smooth, 1, self.smooth // 2, count_include_pad=False
            )
        if self.upsample > 1:
            response = F.interpolate(
                response, scale_factor=self.upsample, mode="bilinear", align_corners=True
            )
        return response


class _ClassResponse(nn.Module):
    """A trunk and a 1x1 convolution to the classes."""

    def __init__(self, trunk: Trunk, num_classes: int, published: bool) -> None:
        super().__init__()
        stages = [trunk.get_submodule(name) for name in trunk.stages]
        self.features = nn.Sequential(*trunk.res1, *stages) if published else trunk
        self.classifier = nn.Sequential(nn.Conv2d(trunk.out_channels, num_classes, kernel_size=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def _make_trunk(name: str, args: Mapping[str, Any]) -> ResNet:
    """A trunk with random weights; its batch norms follow the mode: PRM trains on batches."""
    if name not in get_args(TrunkName):
        known = ", ".join(get_args(TrunkName))
        raise ValueError(f"prm.trunk: there is no {name!r} for the PRM; take one of {known}")
    if name == "resnet50":
        if args:
            raise ValueError(f"prm.trunk_args: resnet50 takes none, got {', '.join(args)}")
        return ResNet(
            Bottleneck,
            depths=(3, 4, 6, 3),
            widths=(64, 128, 256, 512),
            strides=(1, 2, 2, 2),
            frozen_bn=False,
            imagenet=ResNet50_Weights.IMAGENET1K_V1,
        )
    try:
        return resnet18(**{**args, "frozen_bn": False})
    except TypeError as error:
        raise ValueError(f"prm.trunk_args do not fit {name}: {error}") from error


def _load_trunk(trunk: Trunk, weights: str) -> None:
    try:
        if weights == "imagenet":
            trunk.load_weights(trunk.imagenet_weights(), "the ImageNet weights")
        else:
            trunk.load_weights(read_state_dict(weights), weights)
    except (ValueError, FileNotFoundError) as error:
        # The trunk speaks of the options that it usually stands under; here they are others.
        text = str(error)
        for theirs, ours in _OPTIONS.items():
            text = text.replace(theirs, ours)
        raise type(error)(text) from error


def build_prm(config: PRMConfig, num_classes: int, weights: str | None = None) -> PeakResponseNet:
    """The network that a configuration describes.

    Args:
        weights: takes the place of `config.weights`, for example `random` before `load_prm`.
    """
    return PeakResponseNet(
        num_classes,
        trunk=config.trunk,
        trunk_args=config.trunk_args,
        upsample=config.upsample,
        smooth=config.smooth,
        weights=config.weights if weights is None else weights,
    )


def load_prm(net: PeakResponseNet, path: str | Path) -> None:
    """Copies the weights of a PRM checkpoint, ours or a published one, into `net`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, has another number of classes, or another trunk.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no trained PRM; make it with tools/train_prm.py")
    found = read_state_dict(path)
    own = net.state_dict()
    head = "0.classifier.0.weight"
    if head in found and len(found[head]) != len(own[head]):
        raise ValueError(
            f"{path}: the PRM knows {len(found[head])} classes, the data set has "
            f"{len(own[head])}; train one on this data set with tools/train_prm.py"
        )
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    wrong = sorted(
        {name for name in own if name not in found} - optional
        | {name for name in found if name not in own or found[name].shape != own[name].shape}
    )
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of its tensors are missing, of another shape or unknown to "
            f"this PRM ({', '.join(wrong[:3])}); are prm.trunk and prm.trunk_args those it was "
            "trained with?"
        )
    net.load_state_dict(own | found)


def trunk_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The part of a PRM checkpoint that a CIM backbone starts from, in that backbone's names.

    `resnet18` gives its whole trunk (`res1.*`..`res5.*`); `resnet50` gives `res1`..`res4` and
    leaves out the last stage, which CIM's trunk does not have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken or not a PRM checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no trained PRM; make it with tools/train_prm.py")
    trunk = {}
    for name, tensor in read_state_dict(path).items():
        if not name.startswith(_FEATURES):
            continue
        name = name.removeprefix(_FEATURES)
        if re.match(r"\d", name):
            part, rest = name.split(".", 1)
            if part not in _PUBLISHED_PARTS:
                continue
            name = f"{_PUBLISHED_PARTS[part]}.{rest}"
        trunk[name] = tensor
    if not trunk:
        raise ValueError(f"{path}: has no {_FEATURES}*; it is not a PRM checkpoint")
    return trunk
