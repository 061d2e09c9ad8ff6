"""What every backbone offers to the network that is built on it, and how its weights are read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

logger = logging.getLogger(__name__)


class Trunk(nn.Module):
    """A convolutional trunk: (B, 3, h, w) images to (B, out_channels, ~h/stride, ~w/stride).

    Args:
        out_channels: channels of the feature map.
        stride: pixels of the image per cell of the feature map.
        frozen_bn: batch norms always use their running statistics, also in training mode (one
            image per forward is too few to estimate any). Their affine parameters still train
            unless a part is frozen as a whole.
    """

    has_idle_parameters = False
    """Whether there are parameters that count as trainable and never get a gradient."""

    def __init__(self, out_channels: int, stride: int, frozen_bn: bool = True) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride
        self.frozen_bn = frozen_bn

    def own_name(self, name: str) -> str | None:
        """What a tensor of an ImageNet checkpoint is called in this trunk; None if it has no place.

        Names that are this trunk's own already come back unchanged.
        """
        return name

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        """The usual ImageNet weights in their own names (downloaded once, then cached).

        Raises:
            ValueError: there are none for this trunk.
        """
        raise ValueError(
            f"{type(self).__name__} has no ImageNet weights to download; "
            "set model.weights to the path of a checkpoint file, to `prm`, or to `random`"
        )

    def load_weights(self, weights: Mapping[str, Tensor], source: str = "weights") -> None:
        """Copies every tensor of this trunk from a state dict and ignores what has no place here.

        Accepts this trunk's own names, those of its ImageNet checkpoint, and either with
        `module.` or `Conv_Body.` in front (a CIM checkpoint).

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        mine = self.state_dict()
        found = {}
        for name, tensor in weights.items():
            name = self.own_name(name.removeprefix("module.").removeprefix("Conv_Body."))
            if name in mine:
                found[name] = tensor
        optional = {name for name in mine if name.endswith("num_batches_tracked")}
        missing = [name for name in mine if name not in found and name not in optional]
        wrong = [
            f"{name} {tuple(found[name].shape)} instead of {tuple(mine[name].shape)}"
            for name in found
            if found[name].shape != mine[name].shape
        ]
        if missing or wrong:
            raise ValueError(
                f"{source}: does not fit this {type(self).__name__}: "
                f"{_some(missing, 'missing')}{_some(wrong, 'of another shape')}"
                "check model.backbone and model.backbone_args, or set model.weights to `random`"
            )
        self.load_state_dict(mine | found)
        logger.info("trunk: %d tensors from %s", len(found), source)

    def freeze(self, parts: Iterable[nn.Module]) -> None:
        """Takes the parameters of these parts out of training."""
        for part in parts:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        if self.frozen_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def download_weights(weights: WeightsEnum) -> Mapping[str, Tensor]:
    """Torchvision's weights from its cache, downloaded the first time.

    Raises:
        FileNotFoundError: they are not in the cache and cannot be downloaded.
    """
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError) as error:
        raise FileNotFoundError(
            f"the ImageNet weights cannot be downloaded ({error}); get {weights.url} "
            "elsewhere and set model.weights to that file, or to `random`"
        ) from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint file, also where they lie under `model` or `state_dict`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no state dict or is broken.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; docs/INSTALL.md says where the weights come from, and "
            "model.weights which they are"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error type of its own
        raise ValueError(f"{path}: not a readable checkpoint ({error}); copy it again") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {}
    if isinstance(content, dict):
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: holds no tensors by name; expected a state dict")
    return tensors


def _some(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more}); "
