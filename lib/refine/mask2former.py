"""Mask2Former (Cheng et al., CVPR 2022) on any backbone, from the parts of transformers.

Pixel decoder, transformer decoder, matcher and losses are those of transformers, which also draws
their first weights; the backbone is one of lib/modeling/backbones. An image is a batch of its own,
so that none is padded to the size of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import Mask2FormerConfig, Mask2FormerPreTrainedModel
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from lib.config import RefineModelConfig, RefineTestConfig
from lib.modeling.backbones import Backbone
from lib.refine.second_stage import Found, SecondStage, pyramid_levels, starting_backbone
from lib.structures import InstanceSample

LOSS_WEIGHTS = {"cross_entropy": 2.0, "mask": 5.0, "dice": 5.0}
"""As published, in the sum of the losses and in the matcher."""
_ATTENDED = 3
"""Levels with attention, a number that transformers fixes; their strides are at least 8."""
_MULTIPLE = 32
"""The sides of an image are padded to a multiple of this."""
_AT_ONCE = 16
"""Float32 masks of the whole image in memory at a time."""


@dataclass(frozen=True)
class Options:
    """`refine.model.network_args`; the defaults are published."""

    width: int = 256
    """Channels of features, queries and masks: a multiple of 64, so that each of the 32 groups of a
    norm has more than one value, even in a map of one cell."""
    queries: int = 100
    encoder_layers: int = 6
    """Of the pixel decoder."""
    decoder_layers: int = 9
    points: int = 12544
    """Drawn of every mask for the losses."""

    def __post_init__(self) -> None:
        if self.width % 64:
            raise ValueError(f"width is {self.width}, expected a multiple of 64")


class Mask2Former(Mask2FormerPreTrainedModel):
    """Backbone, pixel decoder and transformer decoder, which finds classes and masks of queries.

    Args:
        body: its last map of every stride of at least `finest` is used. Where these are too few,
            the coarser levels take every other cell of the one before.
        num_classes: C, without the class "no object", which comes last.
    """

    def __init__(self, body: Backbone, options: Options, num_classes: int, finest: int = 4) -> None:
        levels = pyramid_levels(body, finest)
        channels = [body.layers[n].channels for n in levels]
        strides = [body.layers[n].stride for n in levels]
        multiple = lcm(*strides, 1 if any(_MULTIPLE % s for s in strides) else _MULTIPLE)
        while sum(stride >= 8 for stride in strides) < _ATTENDED:
            channels.append(channels[-1])
            strides.append(2 * strides[-1])
        width = options.width
        config = Mask2FormerConfig(
            num_labels=num_classes,
            feature_strides=strides,
            common_stride=strides[0],
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_feedforward_dim=4 * width,
            dim_feedforward=8 * width,
            encoder_layers=options.encoder_layers,
            decoder_layers=options.decoder_layers + 1,  # counts the queries before the first
            num_queries=options.queries,
            train_num_points=options.points,
            class_weight=LOSS_WEIGHTS["cross_entropy"],
            mask_weight=LOSS_WEIGHTS["mask"],
            dice_weight=LOSS_WEIGHTS["dice"],
        )
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, channels)
        self.transformer = Mask2FormerTransformerModule(width, config)
        self.class_predictor = nn.Linear(width, num_classes + 1)
        self.criterion = Mask2FormerLoss(config, LOSS_WEIGHTS)
        self.post_init()
        self.body = body  # after what draws the weights
        self.levels, self.num_coarser = levels, len(strides) - len(levels)
        self.multiple = multiple

    def forward(self, image: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Classes and masks of Q queries before and after every layer of the decoder.

        Args:
            image: (3, h, w), see `padded`.

        Returns:
            Logits (1, Q, C+1) and (1, Q, h / 4, w / 4), where 4 is the stride of the finest map.
        """
        maps = self.body.feature_maps(image[None])
        maps = [maps[n] for n in self.levels]
        for _ in range(self.num_coarser):
            maps.append(maps[-1][..., ::2, ::2])
        pixels = self.pixel_decoder(maps)
        decoded = self.transformer(
            pixels.multi_scale_features, pixels.mask_features, output_hidden_states=True
        )
        queries = decoded.intermediate_hidden_states  # (Q, 1, width) each
        classes = tuple(self.class_predictor(q.transpose(0, 1)) for q in queries)
        return classes, decoded.masks_queries_logits

    def padded(self, pixels: Tensor) -> Tensor:
        """Pads (N, h, w) to sides that the finest level divides, on the right and at the bottom."""
        height, width = (-side % self.multiple for side in pixels.shape[-2:])
        return F.pad(pixels, (0, width, 0, height))


def build_mask2former(
    config: RefineModelConfig,
    test: RefineTestConfig,
    num_classes: int,
    cim_backbone: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
) -> Mask2Former:
    """Builds a Mask2Former and loads its backbone's weights.

    Args:
        config: the section `refine.model`.
        test: not used, see `detect`.
        num_classes: C, without the background.
        cim_backbone, pretrained: see `starting_backbone`, also for what is raised.

    Raises:
        ValueError: an option does not fit.
    """
    try:
        options = Options(**config.network_args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"refine.model.network_args do not fit mask2former: {error}") from error
    body = starting_backbone(config, cim_backbone, pretrained)
    return Mask2Former(body, options, num_classes, config.finest_stride)


class DrawsFrom(TorchFunctionMode):
    """Inside it, `torch.rand` of this thread draws from a generator of the CPU."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.rand:
            device = kwargs.pop("device", "cpu")
            return func(*args, **kwargs, generator=self.generator).to(device)
        return func(*args, **kwargs)


def mask2former_losses(
    model: nn.Module, sample: InstanceSample, generator: torch.Generator
) -> dict[str, Tensor]:
    """The losses of one image by the names in LOSS_WEIGHTS, summed over the decoder's layers.

    Args:
        generator: draws the points at which masks are compared.
    """
    network: Mask2Former = getattr(model, "module", model)  # inside DistributedDataParallel
    classes, masks = model(network.padded(sample.image))
    earlier = [
        {"masks_queries_logits": m, "class_queries_logits": c}
        for m, c in zip(masks[:-1], classes[:-1], strict=True)
    ]
    targets = [network.padded(sample.masks).float()], [sample.class_idx]
    with DrawsFrom(generator):
        found = network.criterion(masks[-1], classes[-1], *targets, earlier)
    return {
        name: sum(value for key, value in found.items() if key.startswith(f"loss_{name}"))
        for name in LOSS_WEIGHTS
    }


def detect(
    model: Mask2Former, image: Tensor, size: tuple[int, int], test: RefineTestConfig
) -> Iterator[Found]:
    """The best pairs of a query and a class in an image (3, h, w), with masks of `size` (H, W).

    A score is the probability of the class times the mean probability of the mask inside it
    (published inference). Nothing is suppressed: queries learn not to repeat each other.
    """
    (h, w), whole = image.shape[-2:], model.padded(image)
    classes, masks = model(whole)
    probs = classes[-1][0].softmax(-1)[:, :-1]  # (Q, C)
    scores, best = probs.flatten().topk(min(test.detections_per_image, probs.numel()))
    best = best[scores > test.score_thresh]
    found = []
    for some in best.split(_AT_ONCE) if len(best) else ():
        query, class_idx = some // probs.shape[1], some % probs.shape[1]
        logits = F.interpolate(masks[-1][:, query], whole.shape[-2:], mode="bilinear")
        logits = F.interpolate(logits[..., :h, :w], size, mode="bilinear")[0]  # (k, H, W)
        prob = logits.sigmoid()
        inside = prob > test.mask_thresh
        certainty = (prob * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        score = probs.flatten()[some] * certainty
        found += map(Found, class_idx.tolist(), score.tolist(), inside.cpu().numpy())
    found = [one for one in found if one.score > test.score_thresh]
    yield from sorted(found, key=lambda one: -one.score)


SECOND_STAGE = SecondStage(
    title="Mask2Former",
    build=build_mask2former,
    losses=mask2former_losses,
    loss_weights=LOSS_WEIGHTS,
    optimizer="adamw",
    detect=detect,
)
