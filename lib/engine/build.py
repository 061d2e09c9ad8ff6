"""Builds the parts of a training or a test from a configuration and a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.config import Config, RefineConfig, RuntimeConfig, SolverConfig
from lib.data.catalog import Dataset
from lib.data.coco import CocoImages, ImageRecord
from lib.data.loader import CimDataset, ImageDataset
from lib.engine.checkpoint import MADE_FROM, load_checkpoint, load_model
from lib.engine.distributed import ALONE, Ranks
from lib.engine.inference import Detector
from lib.engine.solver import OPTIMIZERS, build_optimizer
from lib.engine.trainer import Criterion, Forward, OneByOne, Together, Trainer
from lib.fast.feature_cache import FeatureCache, allowed_features, plan_features
from lib.fast.feature_maps import KeptMaps, PackedMaps
from lib.fast.folding import fold_batch_norms
from lib.fast.lanes import SideBySide
from lib.fast.mining import fast_miner
from lib.fast.network import FastCIMNet, score_images
from lib.fast.precision import bfloat16_speedup
from lib.modeling.backbones import Backbone
from lib.modeling.criterion import CIMCriterion, score_image
from lib.modeling.model_builder import CIMNet, build_model
from lib.prm.assign import samples_made_from
from lib.prm.clusters import ClusterStore
from lib.prm.network import prm_backbone, prm_fingerprint
from lib.proposals.store import ProposalStore
from lib.provenance import MadeFrom, file_fingerprint, fingerprint, masks_seen
from lib.refine.second_stage import pyramid_levels, second_stage
from lib.structures import InstanceSample

logger = logging.getLogger(__name__)

KEEP_IN_MEMORY = 256 * 1024**2
"""Bytes; data sets smaller than this are read only once."""

PROPOSALS_TOGETHER = 1024
"""Proposals, of all views of an image, that pass MaskFuse together: more are not faster, and each
takes 100 kB or more."""


def open_training_data(
    dataset: Dataset, coco: CocoImages, with_clusters: bool, ranks: Ranks = ALONE
) -> CimDataset:
    """Opens the data to train on and checks that everything it needs is there and up to date.

    Raises:
        FileNotFoundError: images, proposals or clusters are missing; names some.
        ValueError: proposals were made from other images; clusters from other images, labels,
            proposals or PRM weights.
    """
    coco.check_files(dataset.images)
    coco.warn_of_labels()
    labelled = [record for record in coco.images if record.image_labels.any()]
    made_from = _made_from(dataset, labelled, with_clusters, ranks)
    clusters = ClusterStore(dataset.clusters) if with_clusters else None
    proposals = ProposalStore(dataset.proposals)
    return CimDataset(coco, dataset.images, proposals, clusters, KEEP_IN_MEMORY, made_from)


def open_test_data(dataset: Dataset, coco: CocoImages, ranks: Ranks = ALONE) -> CimDataset:
    """Opens the data to test on; the same checks, without clusters.

    Raises:
        FileNotFoundError: images or proposals are missing; names some.
        ValueError: proposals were made from other images.
    """
    coco.check_files(dataset.images)
    made_from = _made_from(dataset, coco.images, False, ranks)
    return CimDataset(coco, dataset.images, ProposalStore(dataset.proposals), made_from=made_from)


def _made_from(
    dataset: Dataset, images: Sequence[ImageRecord], with_clusters: bool, ranks: Ranks
) -> dict[str, MadeFrom]:
    """Records of the samples of images, by file name; the first rank reads them for all."""
    made_from = None
    if ranks.is_first:
        made_from = samples_made_from(dataset, images)
        if with_clusters:
            prm = prm_fingerprint(dataset.prm) if dataset.prm.is_file() else None
            wanted = {name: {**record, "prm": prm} for name, record in made_from.items()}
            clusters = ClusterStore(dataset.clusters).fingerprints(wanted, dataset.memory)
            made_from = {n: {**record, "clusters": clusters[n]} for n, record in made_from.items()}
    ranks.wait(patiently=True)  # reading every image may take longer than other ranks wait for
    return ranks.from_first(made_from)


def initial_model(
    config: Config, dataset: Dataset, num_classes: int, weights: Path | None
) -> CIMNet:
    """Builds the network that a training starts from.

    Args:
        weights: a checkpoint of the whole network; None takes `config.model.weights`.
    """
    if weights is not None:
        model = build_model(config.model, num_classes, pretrained=False)
        load_model(model, load_checkpoint(weights)["model"], weights, num_classes)
        return model
    tensors = prm_backbone(dataset.prm) if config.model.weights == "prm" else None
    return build_model(config.model, num_classes, tensors)


def trained_model(
    config: Config, state: Mapping[str, Any], source: Path, class_names: Sequence[str]
) -> CIMNet:
    """Builds the network of a checkpoint from `load_checkpoint`, in evaluation mode.

    Args:
        source: the checkpoint's file, for messages.
        class_names: of the data set.

    Raises:
        CheckpointError: it does not fit the configuration, or the classes of the data set.
    """
    model = build_model(config.model, len(class_names), pretrained=False)
    load_model(model, state["model"], source, len(class_names))
    for there, here in zip(state.get("class_names", ()), class_names, strict=False):
        if there != here:
            logger.warning("%s calls a class %s, the data set calls it %s", source, there, here)
    return model.eval()


def kept_features(
    config: Config | RefineConfig,
    limit: float | None,
    backbone: Backbone,
    data: ImageDataset,
    root: Path,
    ranks: Ranks = ALONE,
) -> FeatureCache | None:
    """A cache of what the backbone has frozen in front, if configured and of use for a training.

    Args:
        config: its `input` and `solver` count.
        limit: `runtime.feature_cache_gb`.
        root: the data root.
    """
    scales, flips = config.input.train_scales, config.input.train_flips
    images, count = [data.coco.images[index] for index in data.labelled()], len(data.drawn())
    pixels = sum(r.height * r.width * (s / max(r.size)) ** 2 for r in images for s in scales)
    pixels *= count / max(len(images), 1)  # mosaics are as large as images
    looks = config.solver.max_iter * config.solver.images_per_update
    uses = looks / max(count * len(scales) * len(flips), 1)
    gigabytes = allowed_features(limit, backbone, ranks.device) / ranks.count
    return plan_features(backbone, gigabytes, pixels * len(flips), uses, root)


def keep_maps(
    config: Config, model: nn.Module, data: ImageDataset, root: Path, ranks: Ranks = ALONE
) -> None:
    """Lets a second stage in training mode keep the maps of a backbone that is frozen as a whole.

    Args:
        model: changed in place.
        root: the data root.
    """
    body = next(part for part in model.modules() if isinstance(part, Backbone))
    packed = PackedMaps(body, pyramid_levels(body, config.refine.model.finest_stride))
    if packed.frozen_parts():
        limit = config.runtime.feature_cache_gb
        kept = kept_features(config.refine, limit, packed, data, root, ranks)
        if kept is not None:
            body.feature_maps = KeptMaps(packed, kept)


def build_trainer(
    config: Config,
    model: CIMNet,
    device: str,
    num_lanes: int = 1,
    ranks: Ranks = ALONE,
    kept: FeatureCache | None = None,
) -> Trainer:
    """Builds a trainer that has made no update yet.

    Args:
        num_lanes: images that a single process works on at the same time.
        ranks: the processes that share the images of an update.
        kept: see `kept_features`; made for this `model`.

    Raises:
        ValueError: the images of an update cannot be shared evenly, or the GPU lacks the precision.
    """
    solver, runtime = config.solver, config.runtime
    precision = chosen_precision(runtime, device)
    model.to(device, memory_format=memory_format(runtime)).train()
    model = FastCIMNet(model, precision, runtime.proposals_chunk, kept)
    criterion = CIMCriterion(fast_miner(config.mining, device))
    together = score_images if runtime.images_together else None
    backward = choose_backward(model, score_image, criterion, solver, num_lanes, ranks, together)
    if runtime.compile and kept is None:
        for net in backward.models:
            net.Conv_Body.compile(dynamic=True)
    return Trainer(
        model=model,
        backward=backward,
        optimizer=build_optimizer(model, solver),
        solver=solver,
        loss_weights=config.loss.model_dump(),
        seed=config.run.seed,
        device=torch.device(device),
        ranks=ranks,
    )


def build_refine_trainer(
    config: Config, model: nn.Module, device: str, num_lanes: int = 1, ranks: Ranks = ALONE
) -> Trainer:
    """Builds a trainer of the second stage; arguments as for `build_trainer`."""
    solver, network = config.refine.solver, second_stage(config.refine.model.network)

    def forward(
        model: nn.Module, sample: InstanceSample, generator: torch.Generator
    ) -> tuple[dict[str, Tensor]]:
        return (network.losses(model, sample, generator),)  # `dict` is the criterion

    model.to(device, memory_format=memory_format(config.runtime)).train()
    return Trainer(
        model=model,
        backward=choose_backward(model, forward, dict, solver, num_lanes, ranks),
        optimizer=OPTIMIZERS[network.optimizer](model, solver),
        solver=solver,
        loss_weights=network.loss_weights,
        seed=config.run.seed,
        device=torch.device(device),
        ranks=ranks,
    )


def choose_backward(
    model: nn.Module,
    forward: Forward,
    criterion: Criterion,
    solver: SolverConfig,
    num_lanes: int = 1,
    ranks: Ranks = ALONE,
    together: Callable[..., list[tuple[Any, ...]]] | None = None,
) -> OneByOne | SideBySide | Together:
    """Chooses how an update is computed on this hardware.

    Args:
        num_lanes: images that a CPU works on at the same time.
        together: `forward` for several images in one pass, where that is wanted.

    Raises:
        ValueError: the images of an update cannot be shared evenly among the ranks.
    """
    if ranks.count == 1 and together is not None:
        return Together(model, together, criterion)
    num_lanes = min(num_lanes, solver.images_per_update)
    if ranks.count == 1 and num_lanes > 1:
        return SideBySide(model, forward, criterion, num_lanes)
    return OneByOne(model, forward, criterion, solver.images_per_update, ranks)


def build_detector(
    config: Config,
    model: nn.Module,
    category_ids: Sequence[int],
    device: str,
    augment: bool = True,
    only_image_labels: bool = False,
) -> Detector:
    """Builds the detector: test-time augmentation and selection as configured.

    Args:
        model: prepared for inference in place; it cannot be trained or saved afterwards.
        category_ids: the COCO category id of every class.
        augment: False takes one pass, at the largest scale and not mirrored.
        only_image_labels: detects only the classes an image is labelled with, without a limit.

    Raises:
        ValueError: the GPU lacks the precision.
    """
    test = config.test
    return Detector(
        model=prepare_for_inference(model, config.runtime, device),
        category_ids=category_ids,
        scales=test.scales if augment else (max(test.scales),),
        flips=test.flips if augment else ("none",),
        score_thresh=test.score_thresh,
        nms_thresh=test.nms_thresh,
        max_detections=None if only_image_labels else test.detections_per_image,
        only_image_labels=only_image_labels,
        device=device,
        mil_branch=test.mil_branch,
    )


def prepare_for_inference(model: CIMNet, runtime: RuntimeConfig, device: str = "cpu") -> FastCIMNet:
    """The fast form of a network for testing, with batch norms folded and weights stored in the
    precision that they are used in.

    Args:
        model: is changed in place and cannot be trained or saved any more.
        device: that it will be used on.

    Raises:
        ValueError: the GPU lacks the precision.
    """
    precision = chosen_precision(runtime, device)
    model.eval().requires_grad_(False)
    fold_batch_norms(model.Conv_Body)
    for part in (model.Conv_Body, model.Box_Head):
        part.to(precision, memory_format=memory_format(runtime))
    if runtime.compile:
        model.Conv_Body.compile(dynamic=True)
    return FastCIMNet(model, precision, runtime.proposals_chunk or PROPOSALS_TOGETHER)


def chosen_precision(runtime: RuntimeConfig, device: str) -> torch.dtype:
    """The configured precision of products; warns where a CPU computes bfloat16 slower.

    Raises:
        ValueError: a GPU has no products of that type.
    """
    where = torch.device(device)
    if runtime.precision == "fastest":
        if where.type == "cpu":
            has_products = bfloat16_speedup() > 1
        else:
            has_products = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_products else torch.float32
    if runtime.precision == "float32":
        return torch.float32
    if where.type == "cpu" and (speedup := bfloat16_speedup()) < 1:
        logger.warning(
            "runtime.precision is bfloat16, whose products take %.0f times as long as those of "
            "float32 on this processor; set it to float32",
            1 / speedup,
        )
    if where.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"runtime.precision is bfloat16, which {torch.cuda.get_device_name(where)} does not "
            "compute; set it to float32"
        )
    return torch.bfloat16


def memory_format(runtime: RuntimeConfig) -> torch.memory_format:
    """Of the weights; feature maps follow it."""
    return torch.channels_last if runtime.channels_last else torch.contiguous_format


def share_threads(device: str, threads: int | None, at_most: int) -> int:
    """Number of images to work on at a time; sets PyTorch's threads to the share of each.

    Args:
        threads: of the processor; None takes PyTorch's default.
        at_most: maximum number of images, to limit memory.

    Returns:
        1 on CUDA.
    """
    threads = threads if threads is not None else torch.get_num_threads()
    lanes = 1 if torch.device(device).type == "cuda" else max(1, min(threads, at_most))
    torch.set_num_threads(max(1, threads // lanes))
    return lanes


def images_ahead(device: str, threads: int | None, num_workers: int) -> int:
    """Threads for `detect_dataset`; sets PyTorch's threads to the share of each.

    Args:
        threads: of the processor, as for `share_threads`.
        num_workers: threads that read images for a GPU.
    """
    lanes = share_threads(device, threads, at_most=4)
    if torch.device(device).type == "cuda":
        return num_workers
    return lanes if lanes > 1 else 0


def training_made_from(
    config: Config, dataset: Dataset, data: CimDataset, weights: Path | None
) -> dict[str, Any]:
    """The record of a training, see lib/provenance.py.

    Args:
        weights: as for `initial_model`.
    """
    content = config.model_dump(mode="json")
    kept = {name: content[name] for name in ("model", "mining", "loss", "solver", "input")}
    del kept["input"]["num_workers"]
    records = data.made_from.values()
    return {
        **kept,
        "run": {"seed": config.run.seed},
        "weights": _weights_made_from(weights or config.model.weights, dataset.prm),
        "data": {
            "train_size": len(data.made_from),
            "classes": data.coco.class_names,
            "images": fingerprint([record.get("image") for record in records]),
            **{
                name: fingerprint([record.get(name) for record in records])
                for name in ("image_labels", "proposals", "clusters")
            },
        },
        **masks_seen(*records),
    }


def _weights_made_from(weights: str | Path, prm: Path) -> str:
    """Fingerprint of the weights a training starts from; the name of those that are no file."""
    if weights == "prm":
        return prm_fingerprint(prm)
    return file_fingerprint(Path(weights)) if Path(weights).is_file() else str(weights)


def detections_made_from(
    config: Config, state: Mapping[str, Any], data: CimDataset, augment: bool, image_labels: bool
) -> tuple[dict[str, Any], dict[int, str]]:
    """The record of detections, and by image id the fingerprint of what counts for one image.

    Args:
        state: of the checkpoint.
        augment: see `build_detector`.
        image_labels: likewise, `only_image_labels`.
    """
    made_from = {
        "weights": fingerprint(state["model"]),
        "test": config.test.model_dump(mode="json", exclude={"iou_thresholds"}),
        "precision": config.runtime.precision,
        "augment": augment,
        "only_image_labels": image_labels,
        "category_ids": list(data.coco.category_ids),
        **masks_seen(state.get(MADE_FROM), *data.made_from.values()),
    }
    keys = ("image", "proposals", "image_labels") if image_labels else ("image", "proposals")
    of_images = {
        image.image_id: fingerprint([data.made_from[image.file_name][key] for key in keys])
        for image in data.coco.images
    }
    return made_from, of_images
