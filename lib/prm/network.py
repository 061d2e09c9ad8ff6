"""The peak response network: a fully convolutional classifier whose response maps have peaks.

Zhou et al., "Weakly Supervised Instance Segmentation using Class Peak Response", CVPR 2018.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from lib.config import PRMConfig
from lib.modeling.backbones import Backbone, build_backbone, read_state_dict
from lib.provenance import fingerprint

_FEATURES = "0.features."
_HEAD = "0.classifier.0.weight"


class PeakResponseNet(nn.Sequential):
    """Class response maps, upsampled.

    The one child is called `0` as in the published state dict (`0.features.*`,
    `0.classifier.0.*`).

    Args:
        num_classes: C.
        settings: the section `prm`. `resnet50` has all four layers (stride 32) and published names
            here. The backbone's weights are random (see `build_prm`).

    Raises:
        ValueError: an unknown backbone, options that do not fit it, or an even `smooth`.
    """

    def __init__(self, num_classes: int, settings: PRMConfig) -> None:
        if settings.smooth % 2 == 0:
            raise ValueError(f"prm.smooth must be odd, got {settings.smooth}")
        backbone = build_backbone(settings.backbone, settings.backbone_args, "prm", use="prm")
        backbone.use_batch_statistics()
        super().__init__(_ClassResponse(backbone, num_classes))
        self.num_classes = num_classes
        self.settings = settings

    @property
    def backbone(self) -> Backbone:
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
            backbone lie on the corners of the map.
        """
        return self.smoothed(self[0](images))

    def smoothed(self, response: Tensor) -> Tensor:
        """Response maps as `forward` gives them, from those on the backbone's cells."""
        smooth, upsample = self.settings.smooth, self.settings.upsample
        if smooth > 1:
            response = F.avg_pool2d(response, smooth, 1, smooth // 2, count_include_pad=False)
        if upsample > 1:
            response = F.interpolate(
                response, scale_factor=upsample, mode="bilinear", align_corners=True
            )
        return response


class _ClassResponse(nn.Module):
    """A backbone and a 1x1 convolution to the classes."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.features = backbone
        self.classifier = nn.Sequential(nn.Conv2d(backbone.out_channels, num_classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def build_prm(settings: PRMConfig, num_classes: int, weights: str | None = None) -> PeakResponseNet:
    """The network that a configuration describes, with the weights that its backbone starts from.

    Args:
        weights: takes the place of `settings.weights`, for example `random` before `load_prm`.

    Raises:
        ValueError: the network cannot be made, or the weights do not fit.
        FileNotFoundError: the weights are missing and cannot be downloaded.
    """
    net = PeakResponseNet(num_classes, settings)
    net.backbone.start_from(settings.weights if weights is None else weights)
    return net


def load_prm(net: PeakResponseNet, path: str | Path) -> None:
    """Copies the weights of a PRM checkpoint, ours or a published one, into `net`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, has another number of classes, or another backbone.
    """
    found = _read(path)
    own = net.state_dict()
    if _HEAD in found and len(found[_HEAD]) != len(own[_HEAD]):
        raise ValueError(
            f"{path}: the PRM knows {len(found[_HEAD])} classes, the data set has "
            f"{len(own[_HEAD])}; train one on this data set with tools/prm.py train"
        )
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    wrong = sorted(
        {name for name in own if name not in found} - optional
        | {name for name in found if name not in own or found[name].shape != own[name].shape}
    )
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of its tensors are missing, of another shape or unknown to "
            f"this PRM ({', '.join(wrong[:3])}); are prm.backbone and prm.backbone_args those it "
            "was trained with?"
        )
    net.load_state_dict(own | found)


def open_prm(settings: PRMConfig, path: str | Path) -> PeakResponseNet:
    """The network of a PRM checkpoint with the classes that it knows, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: as `load_prm`.
    """
    head = _read(path).get(_HEAD)
    net = build_prm(settings, 1 if head is None else len(head), weights="random")
    load_prm(net, path)
    return net.eval()


def prm_fingerprint(path: str | Path) -> str:
    """Fingerprint of the weights in a PRM checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken.
    """
    return fingerprint(_read(path))


def prm_backbone(path: str | Path) -> dict[str, Tensor]:
    """The backbone's tensors of a PRM checkpoint, for a CIM network that starts from them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken or not a PRM checkpoint.
    """
    tensors = _read(path)
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith(_FEATURES)}
    if not backbone:
        raise ValueError(f"{path}: has no {_FEATURES}*; it is not a PRM checkpoint")
    return backbone


def _read(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no trained PRM; make it with tools/prm.py train")
    return read_state_dict(path)
