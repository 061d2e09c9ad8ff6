"""Typed, frozen configuration: the numbers of an experiment, and nothing else.

A YAML file states its differences from the defaults below (the published ResNet-50 / VOC
numbers) and may name one other file as `_BASE_`. `KEY VALUE` pairs override both. A section
is the frozen object that the code takes; every default stands here alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from lib.files import write_text
from lib.modeling.heads import CIMMiner
from lib.proposals.generator import Generator, Trees
from lib.proposals.sam import Sam
from lib.renamed import RENAMED, with_new_keys

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Flips = tuple[Literal["none", "horizontal", "vertical", "both"], ...]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class _WithBackbone(_Section):
    backbone: str = "resnet50"
    """A name registered in lib/modeling/backbones."""
    backbone_args: dict[str, Any] = {}
    """Options of its constructor, for example widths. One network can start from the backbone of
    another only with the same ones: write `${model.backbone_args}`."""
    weights: str = "imagenet"
    """Start of the backbone: `imagenet`, `random`, or the path of a checkpoint file; `prm`
    for `model` is that of the data set's PRM, `cim` for `refine.model` that of the CIM run."""


class ModelConfig(_WithBackbone):
    fuse_channels: AtLeastOne | None = None
    """Channels after the MaskFuse convolution; null keeps the backbone's (as published)."""
    hidden_dim: AtLeastOne = 4096
    num_stages: Count = 3
    """Refinement branches; 0 leaves the MIL branch alone."""
    integrity: bool = True
    """The stages have an integrity branch. False is an ablation, together with
    `mining.complete_by: cls` and `loss.refine_integrity: 0`."""


class LossConfig(_Section):
    bag: float = 1.0
    """PCL's author takes 4 for COCO's 80 classes (docs/method.md)."""
    pcl: float = 1.0
    """Times the 12 that the loss itself carries; 0 trains without clusters."""
    refine_bag: float = 1.0
    refine_cls: float = 1.0
    refine_integrity: float = 3.0


class SolverConfig(_Section):
    base_lr: Positive = 2.5e-4
    momentum: Fraction = 0.9
    weight_decay: float = 5e-4
    bias_lr_factor: float = 2.0
    max_iter: AtLeastOne = 45000
    """Updates, each the sum of the gradients of `images_per_update` images."""
    steps: tuple[int, ...] = (30000,)
    """Updates (counted from 0) from which on the rate is multiplied by `gamma`."""
    gamma: Fraction = 0.1
    warmup_iters: Count = 500
    """Updates before the base rate is reached; 0 starts with it."""
    warmup_factor: Fraction = 1 / 3
    """The very first update uses base_lr times this."""
    images_per_update: AtLeastOne = 4
    clip_grad_norm: Positive | None = None

    @pydantic.field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise PydanticCustomError("steps", "must ascend")
        return steps


class InputConfig(_Section):
    train_scales: tuple[AtLeastOne, ...] = (480, 576, 688, 864, 1200)
    """Long sides in pixels, one drawn per image and epoch."""
    train_flips: Flips = ("none", "horizontal")
    """Every image appears once in an epoch for each of these."""
    num_workers: Count = 2


class InferenceConfig(_Section):
    scales: tuple[AtLeastOne, ...] = (480, 576, 688, 864, 1200)
    flips: Flips = ("none", "horizontal")
    score_thresh: float = 1e-5
    nms_thresh: Fraction = 0.3
    detections_per_image: AtLeastOne = 100
    iou_thresholds: tuple[Fraction, ...] = (0.25, 0.5, 0.7, 0.75)
    mil_branch: bool = False
    """The score is the mean of the stages' and the MIL branch's; as published it is the stages'."""


class PRMConfig(_WithBackbone):
    image_size: AtLeastOne = 448
    """Images are squeezed to this square."""
    upsample: AtLeastOne = 8
    smooth: AtLeastOne = 1
    """Side of an average filter on the response maps (odd); 1 is none, as published."""
    peak_thresh: float = 10.0
    """Peaks of a class that is present are used when their response is above this."""
    peak_thresh_relative: Fraction | None = None
    """If set, the threshold is this fraction of the class's highest peak instead."""
    clusters: Literal["agpl", "foreground"] = "agpl"
    """Groups of proposals: `agpl` around peaks, as published; `foreground` around whole objects,
    for proposals of many levels (docs/method.md)."""
    base_lr: Positive = 0.01
    base_lr_classes: AtLeastOne | None = None
    """If set, with more classes than this the rate is higher in proportion: the loss is a mean over
    classes, so that each has a smaller share."""
    backbone_lr_factor: float = 0.01
    momentum: Fraction = 0.9
    weight_decay: float = 1e-4
    images_per_update: AtLeastOne = 16
    epochs: AtLeastOne = 20
    schedule: Literal["constant", "cosine"] = "constant"
    flips: Flips = ("none", "horizontal")


class ProposalConfig(_Section):
    max_proposals: AtLeastOne = 1000
    generator: str = "trees"
    """`trees`: the built-in one, which never sees masks; or the name of a section below."""
    options: dict[str, Any] = {}
    """Of `trees`: keyword arguments of lib.proposals.generate.generate_proposals."""
    features: bool = False
    """Of `trees`: a network that was trained with ImageNet's labels helps to rank the masks."""
    sam: Sam = Sam()
    """Segment Anything, which was trained with masks (docs/proposals.md)."""

    @pydantic.field_validator("generator")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [n for n, of in cls.model_fields.items() if isinstance(of.default, Generator)]
        if name not in ("trees", *known):
            raise PydanticCustomError("generator", f"must be one of trees, {', '.join(known)}")
        return name

    @pydantic.field_validator("features")
    @classmethod
    def _of_trees(cls, features: bool, info: pydantic.ValidationInfo) -> bool:
        if features and info.data.get("generator", "trees") != "trees":
            raise PydanticCustomError("features", "goes with the generator trees alone")
        return features

    @property
    def chosen(self) -> Generator:
        """The generator with its options."""
        if self.generator == "trees":
            return Trees(self.options, self.features)
        return getattr(self, self.generator)


class PseudoLabelConfig(_Section):
    """The choice of the detections on training images that become pseudo labels."""

    select: Literal["score", "adaptive"] = "score"
    """`score`: all that reach `score_thresh`, as published. `adaptive`: the best of every image and
    label, whatever its score, and others beside it."""
    score_thresh: Fraction = 0.3
    relative_thresh: Fraction = 0.4
    """Of `adaptive`: others need this share of the best one's score."""
    snap_iou: Fraction | None = None
    """If set, a mask becomes the proposal that overlaps it most, from this IoU on."""


class RefineModelConfig(_WithBackbone):
    """A network with a feature pyramid on the backbone."""

    network: str = "mask_rcnn"
    """A name in lib/refine/second_stage.py. Of what follows, others than mask_rcnn take
    `network_args` and `finest_stride`."""
    network_args: dict[str, Any] = {}
    """See the class `Options` in the network's file."""
    fpn_channels: AtLeastOne = 256
    fpn_norms: bool = False
    """Group norms in the pyramid, for a backbone whose maps have large values (timm's
    EfficientNets). As published there are none."""
    finest_stride: AtLeastOne = 4
    """Of the maps of the backbone that are used, in pixels. The finest one takes much of the time
    and is needed for small objects alone."""
    head_dim: AtLeastOne = 1024
    """Width of the box head's two linear layers."""
    mask_layers: AtLeastOne = 4
    """Convolutions of the mask head."""
    anchor_scale: Positive = 8.0
    """Side of the anchors of a pyramid level, in steps of its stride."""
    anchors_per_image: AtLeastOne = 256
    """Sampled for the losses of the region proposal network."""
    rois_per_image: AtLeastOne = 512
    """Sampled for the losses of the heads."""
    rois_before_nms: AtLeastOne = 2000
    """Of each pyramid level."""
    rois_after_nms: AtLeastOne = 1000


class RefineSolverConfig(SolverConfig):
    """The usual 12 epochs of VOC (10,582 images): the usual rate of 0.02 is for the mean over 16
    images, here their gradients are summed."""

    base_lr: Positive = 1.25e-3
    weight_decay: float = 1e-4
    bias_lr_factor: float = 1.0
    max_iter: AtLeastOne = 8000
    steps: tuple[int, ...] = (5300, 7300)
    warmup_factor: Fraction = 1e-3
    images_per_update: AtLeastOne = 16


class RefineInputConfig(InputConfig):
    mosaics: Annotated[float, Field(ge=0.0)] = 0.0
    """Number for each image. Put together from images with one label each, they are groups whose
    objects all have a mask (lib/refine/mosaics.py)."""
    train_scales: tuple[AtLeastOne, ...] = (640, 800, 960, 1066)
    test_scale: AtLeastOne = 1066


class RefineTestConfig(_Section):
    score_thresh: Fraction = 0.05
    nms_thresh: Fraction = 0.5
    detections_per_image: AtLeastOne = 100
    mask_thresh: Fraction = 0.5


class RefineConfig(_Section):
    """The network that is trained on pseudo labels (CIM+)."""

    model: RefineModelConfig = RefineModelConfig()
    solver: RefineSolverConfig = RefineSolverConfig()
    input: RefineInputConfig = RefineInputConfig()
    test: RefineTestConfig = RefineTestConfig()


class RuntimeConfig(_Section):
    """Use of the hardware. Results change by rounding only."""

    precision: Literal["float32", "bfloat16", "fastest"] = "float32"
    """Of the products in backbone and MaskFuse. Weights, heads, losses and mining are float32.
    `fastest`: bfloat16 where the processor has products for it, else float32."""
    channels_last: bool = True
    """Memory layout of images and feature maps."""
    compile: bool = False
    """Compiles the backbone with torch.compile, which takes up to a minute at the start."""
    images_together: bool = False
    """One process trains on all images of an update in one pass. For wide networks: reads weights
    and writes gradients once, but takes the memory of all images. Otherwise it takes the images
    one by one or, on a CPU, side by side on its cores."""
    proposals_chunk: AtLeastOne | None = None
    """RoIAlign and MaskFuse's convolution take at most this many proposals at a time and, in
    training, are computed again for the gradient: less memory, more time. null: all at once."""
    feature_cache_gb: Annotated[float, Field(ge=0)] | None = None
    """Gigabytes, at most, of feature maps of the backbone's frozen first part, which training
    computes once for every image, scale and flip and keeps in float16: in memory, or under
    <data root>/features where that is short. 0: none. null: 4 for a backbone that is frozen as a
    whole on a CPU, else 0."""


class RunConfig(_Section):
    seed: int = 3
    checkpoint_period: AtLeastOne = 5000
    keep_checkpoints: AtLeastOne = 3
    log_period: AtLeastOne = 20
    image_period: Count = 1000
    """Updates from one picture of the mined instances to the next; 0 draws none."""


class Config(_Section):
    model: ModelConfig = ModelConfig()
    mining: CIMMiner = CIMMiner()
    loss: LossConfig = LossConfig()
    solver: SolverConfig = SolverConfig()
    input: InputConfig = InputConfig()
    test: InferenceConfig = InferenceConfig()
    prm: PRMConfig = PRMConfig()
    proposals: ProposalConfig = ProposalConfig()
    pseudo_labels: PseudoLabelConfig = PseudoLabelConfig()
    refine: RefineConfig = RefineConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    run: RunConfig = RunConfig()


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file, the key and the remedy."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, its `_BASE_` chain, and `KEY VALUE` overrides.

    Args:
        path: a YAML file; None means the defaults.
        overrides: alternating dotted keys and values as typed on a command line, for example
            `["solver.max_iter", "200", "test.scales", "[128]"]`.

    Raises:
        FileNotFoundError: `path`, or a `_BASE_` it names, does not exist.
        ConfigError: every fault at once: unknown keys (with the nearest known one), wrong types
            and values out of range, each with its dotted path.
    """
    source = str(path) if path is not None else "the defaults"
    content = _read_yaml(Path(path), seen=()) if path is not None else {}
    return config_from(content, source, overrides)


def config_from(content: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Makes a Config of the content of such a file, or of a checkpoint's `config`.

    Args:
        source: its name in messages.
    """
    merged = OmegaConf.create(with_new_keys(content, source))
    if len(overrides) % 2:
        raise ConfigError(
            f"overrides come in KEY VALUE pairs, got {len(overrides)} words: {' '.join(overrides)}"
        )
    try:
        for key, value in zip(overrides[::2], overrides[1::2], strict=True):
            OmegaConf.update(merged, RENAMED.get(key, key), yaml.safe_load(value), force_add=True)
        content = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{source}: {error}") from error
    try:
        return Config.model_validate(content)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, source)) from None


def save_config(config: Config, path: str | Path) -> None:
    """Writes the whole resolved configuration as YAML that `load_config` reads back."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: _BASE_ leads back to this file; break the circle")
    if not path.is_file():
        by = f" (named as _BASE_ by {seen[-1]})" if seen else ""
        raise FileNotFoundError(f"{path}: no such configuration file{by}")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found a {type(content).__name__}, expected sections of keys")
    content = with_new_keys(content, str(path))
    base = content.pop("_BASE_", None)
    if base is None:
        return content
    below = _read_yaml(path.parent / base, seen=(*seen, path))
    return OmegaConf.to_container(OmegaConf.merge(below, content))


def _explain(error: pydantic.ValidationError, source: str) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = _nearest(key, _known_keys(Config))
            lines.append(f"unknown key {key}" + (f"; did you mean {near}?" if near else ""))
        elif fault["type"] == "value_error":  # of a dataclass, which names its field
            lines.append(f"{key}.{fault['ctx']['error']}")
        else:
            lines.append(f"{key}: {fault['msg']}, got {fault['input']!r}")
    return f"{source}: " + "; ".join(lines)


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known dotted key closest to `key`: in its section, else by the last word of both."""
    key = key.lower()
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if whole and whole[0].split(".")[0] == key.split(".")[0]:
        return whole[0]
    by_word = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    word = difflib.get_close_matches(key.rsplit(".", 1)[-1], by_word, n=1, cutoff=0.75)
    return by_word[word[0]] if word else next(iter(whole), None)


def _known_keys(section: type, prefix: str = "") -> list[str]:
    """Dotted keys of a section, which is a pydantic model or a dataclass, and of those below it."""
    keys = []
    for name, kind in get_type_hints(section).items():
        if name == "model_config":
            continue
        keys.append(prefix + name)
        if isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind)):
            keys += _known_keys(kind, f"{prefix}{name}.")
    return keys
