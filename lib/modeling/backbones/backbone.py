"""Interface of a backbone to CIM, the PRM and the pyramid of Mask R-CNN; loading its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from lib.data.transforms import IMAGENET_MEAN, IMAGENET_STD

logger = logging.getLogger(__name__)

Use = Literal["cim", "prm", "pyramid"]
"""The network that a backbone is for."""

_PREFIXES = ("Conv_Body.", "backbone.body.", "0.features.")
"""Prefixes of a backbone's names in checkpoints of CIM, Mask R-CNN and the PRM."""
_COUNTER = "num_batches_tracked"
"""Part of a batch norm that weights need not have."""


class Layer(NamedTuple):
    """A feature map that a backbone offers."""

    channels: int
    stride: int
    """Pixels of the image per cell."""


class Backbone(nn.Module):
    """A network from images (B, 3, h, w) to feature maps, the finest first.

    CIM and the PRM take the last map, a pyramid the last one of every stride. A backbone defines
    `compute`; one with pretrained weights also `imagenet_weights` and, where these have other
    names, `own_name`.

    Args:
        layers: its feature maps, in the order of `compute`.
    """

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    """Normalisation that the weights were made for, of RGB in [0, 1]."""
    has_idle_parameters = False
    """Whether there are parameters that count as trainable and never get a gradient."""
    has_forms = False
    """Whether the constructor takes `use`, because published networks differ."""
    section = "model"
    """Section of the configuration that errors refer to."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = [Layer(*layer) for layer in layers]
        self.frozen_bn = True
        self._factors: dict[torch.device, Tensor] = {}

    @property
    def out_channels(self) -> int:
        return self.layers[-1].channels

    @property
    def stride(self) -> int:
        return self.layers[-1].stride

    def compute(self, images: Tensor) -> Iterator[Tensor]:
        """Yields (B, channels, ~h/stride, ~w/stride) for every entry of `layers`.

        Args:
            images: (B, 3, h, w), normalised by `mean` and `std`.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """The last feature map.

        Args:
            images: (B, 3, h, w), normalised by ImageNet's mean and deviation, as all networks
                get them (lib/data/transforms.py).
        """
        for features in self.compute(self._renormalise(images)):
            last = features  # the others are not kept
        return last

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps of all layers; `images` as in `forward`."""
        return list(self.compute(self._renormalise(images)))

    def chain(self) -> Sequence[nn.Module]:
        """Modules that lead one by one from normalised images to the last map; () if none do."""
        return ()

    def frozen_parts(self) -> list[nn.Module]:
        """The frozen modules at the start of `chain`; [self] if all is frozen, [] if nothing."""
        if _is_constant(self):
            return [self]
        frozen = list(takewhile(_is_constant, self.chain()))
        return frozen if any(True for part in frozen for _ in part.parameters()) else []

    def frozen_features(self, images: Tensor) -> Tensor:
        """(B, ...) that the frozen parts make of `images`, see `forward`."""
        frozen = self.frozen_parts()
        if frozen == [self]:
            return self(images)
        features = self._renormalise(images)
        for part in frozen:
            features = part(features)
        return features

    def rest(self, features: Tensor) -> Tensor:
        """The last map from `frozen_features`: together they are `forward`."""
        frozen = self.frozen_parts()
        if frozen == [self]:
            return features
        for part in self.chain()[len(frozen) :]:
            features = part(features)
        return features

    def _renormalise(self, images: Tensor) -> Tensor:
        """Changes ImageNet's mean and deviation to this backbone's."""
        usual = zip(IMAGENET_MEAN, IMAGENET_STD, self.mean, self.std, strict=True)
        factors = [(std / own_std, (mean - own) / own_std) for mean, std, own, own_std in usual]
        if all(factor == (1, 0) for factor in factors):
            return images
        if images.device not in self._factors:  # no buffers: they would lose digits in bfloat16
            with torch.inference_mode(False):
                self._factors[images.device] = torch.tensor(factors, device=images.device)
        scale, shift = self._factors[images.device].T[..., None, None]  # (3, 1, 1) each
        return images * scale + shift

    def own_name(self, name: str) -> str | None:
        """Name in this backbone of a tensor of its pretrained weights; None if it has no place.

        The backbone's own names come back unchanged.
        """
        return name

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        """The usual ImageNet weights, under their own names.

        Raises:
            ValueError: there are none for this backbone.
            FileNotFoundError: they are neither here nor can they be downloaded.
        """
        raise ValueError(
            f"{type(self).__name__} has no ImageNet weights to download; "
            f"set {self.section}.weights to the path of a checkpoint file, or to `random`"
        )

    def start_from(self, weights: str) -> None:
        """Loads the weights that the configuration names.

        Args:
            weights: `imagenet`, `random`, or the path of a checkpoint file.

        Raises:
            ValueError: the weights do not fit, or there are none.
            FileNotFoundError: they are not there and cannot be downloaded.
        """
        if weights == "imagenet":
            self.load_weights(self.imagenet_weights(), "ImageNet weights")
        elif weights != "random":
            self.load_weights(read_state_dict(weights, f"{self.section}.weights"), weights)

    def load_weights(self, weights: Mapping[str, Tensor], source: str = "weights") -> None:
        """Copies every tensor of this backbone from a state dict.

        Takes the backbone's own names, those of its pretrained weights, and either as they stand
        in a checkpoint of CIM, the PRM or Mask R-CNN. Other layers and heads are ignored.

        Raises:
            ValueError: a tensor is missing, has another shape, or belongs to a larger network.
        """
        mine = self.state_dict()
        found, surplus = {}, []
        for name, tensor in _of_backbone(weights).items():
            own = self.own_name(name) or ""
            part, _, rest = own.partition(".")
            if own in mine:
                found[own] = tensor
            elif rest and part in self._modules and not own.endswith(_COUNTER):
                surplus.append(name)
        missing = [name for name in mine if name not in found and not name.endswith(_COUNTER)]
        wrong = [
            f"{name} {tuple(tensor.shape)} instead of {tuple(mine[name].shape)}"
            for name, tensor in found.items()
            if tensor.shape != mine[name].shape
        ]
        if missing or wrong or surplus:
            raise ValueError(
                f"{source}: does not fit this {type(self).__name__}: {_some(missing, 'missing')}"
                f"{_some(wrong, 'of another shape')}{_some(surplus, 'more than it has')}check "
                f"{self.section}.backbone and {self.section}.backbone_args, or set "
                f"{self.section}.weights to `random`"
            )
        self.load_state_dict(mine | found)
        logger.info("backbone: %d tensors from %s", len(found), source)

    def use_batch_statistics(self) -> None:
        """Lets batch norms follow the batch in training mode, for the PRM, which trains on batches.

        By default they keep to their running statistics (one image is too few to estimate any);
        their affine parameters train unless a part is frozen.
        """
        self.frozen_bn = False

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.frozen_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def download(self, weights: WeightsEnum) -> Mapping[str, Tensor]:
        """Torchvision's weights from its cache, downloaded the first time.

        Raises:
            FileNotFoundError: they are not in the cache and cannot be downloaded.
        """
        try:
            return weights.get_state_dict(progress=True, check_hash=True)
        except (URLError, OSError) as error:
            raise FileNotFoundError(
                f"the ImageNet weights cannot be downloaded ({error}); get {weights.url} "
                f"elsewhere and set {self.section}.weights to that file, or to `random`"
            ) from error


def read_state_dict(path: str | Path, setting: str = "model.weights") -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint file, also where they lie under `model` or `state_dict`.

    Args:
        setting: the key of the configuration that names the file, for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no state dict or is broken.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; docs/INSTALL.md says where the weights come from, and "
            f"{setting} which they are"
        )
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers have no error type of their own
        raise ValueError(f"{path}: not a readable checkpoint ({error}); copy it again") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: holds no tensors by name; expected a state dict")
    return tensors


def _is_constant(part: nn.Module) -> bool:
    """Whether training leaves it as it is: no parameter trains, no batch norm follows the batch."""
    norms = (module for module in part.modules() if isinstance(module, nn.BatchNorm2d))
    trains = any(parameter.requires_grad for parameter in part.parameters())
    return not trains and not any(norm.training for norm in norms)


def _of_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors of a state dict that may be that of a whole network."""
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    for prefix in _PREFIXES:
        inside = [name for name in weights if name.startswith(prefix)]
        if inside:
            return {name.removeprefix(prefix): weights[name] for name in inside}
    return weights


def _some(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more}); "
