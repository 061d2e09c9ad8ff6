"""Estimated time of the steps from images to masks, measured on a few of the images."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from lib.config import Config
from lib.data.catalog import Dataset
from lib.data.coco import CocoImages
from lib.data.images import read_image
from lib.data.loader import CimDataset
from lib.engine.build import build_trainer, prepare_for_inference, share_threads
from lib.engine.inference import read_passes
from lib.fast.feature_cache import WORTH, FeatureCache, allowed_features
from lib.modeling.backbones import Backbone
from lib.modeling.model_builder import build_model
from lib.modeling.scoring import score_passes
from lib.prm.images import SquareImages
from lib.prm.network import build_prm
from lib.prm.peaks import class_scores
from lib.prm.prompts import open_generator
from lib.prm.train import response
from lib.proposals.store import ProposalStore

SAMPLE = 3
"""Images to measure."""
_START = 6.0
"""Seconds that a tool takes to start and end."""
_FITTED = 0.06
"""Seconds that an image takes in the four rounds of `prm.clusters: foreground`."""
_SHORT = 2.0
"""Seconds; anything faster is measured again, because the first call does more. On a GPU, where it
loads kernels for many seconds, everything is."""


def estimate_seconds(
    config: Config, dataset: Dataset, coco: CocoImages, device: str, threads: int | None, cores: int
) -> dict[str, float]:
    """Seconds from images to masks on this machine, by the names of the steps.

    Networks start from their weights as configured, so that missing weights are found before hours
    are spent.

    Args:
        coco: the data set's json; at least one image has a label.
        threads: of PyTorch; None takes its own number.
        cores: number of processes that make proposals.

    Raises:
        FileNotFoundError, ValueError: weights or images cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = ProposalStore(folder)
        data = CimDataset(coco, dataset.images, store)
        labelled = data.labelled()
        sample = labelled[:: max(1, len(labelled) // SAMPLE)][:SAMPLE]
        prm_update, prm_image = _prm(config, data, sample, device, threads)
        start = time.perf_counter()
        generate = open_generator(config, device)
        opening = time.perf_counter() - start
        for record in (coco.images[index] for index in sample):
            image = read_image(dataset.images / record.file_name, record.size)
            store.save(record.file_name, generate(image))
        proposals = (time.perf_counter() - start - opening) / len(sample)
        del generate
        together = 1 if config.proposals.chosen.on_device else min(cores, len(coco))
        update, test = _cim(config, data, sample, device, threads)
    fitted = _FITTED if config.prm.clusters == "foreground" else 0.0
    prm_updates = config.prm.epochs * max(1, len(labelled) // config.prm.images_per_update)
    return {
        "proposals": _START + opening + proposals * len(coco) / together,
        "prm": _START + prm_update * prm_updates + prm_image * len(labelled),
        "clusters": _START + (prm_image + fitted) * len(labelled),
        "train": _START + update * config.solver.max_iter,
        "masks": _START + test * len(coco),
        "pseudo_labels": 5 + 0.01 * len(coco),
        "gallery": 10 + 0.2 * len(coco),
    }


def _prm(
    config: Config, data: CimDataset, sample: list[int], device: str, threads: int | None
) -> tuple[float, float]:
    """Seconds of an update, and of an image without training."""
    share_threads(device, threads, at_most=1)
    net = build_prm(config.prm, data.coco.num_classes).to(device).train()
    size = min(config.prm.images_per_update, len(data))
    records = [data.coco.images[n] for n in sample]
    images = SquareImages(records, data.image_dir, config.prm.image_size)
    chosen = [n % len(sample) for n in range(size)]
    labels = images.image_labels[chosen].to(device)

    def update(kept: FeatureCache | None) -> None:
        batch = images.batch(chosen, ["none"] * size).to(device)
        F.multilabel_soft_margin_loss(class_scores(response(net, batch, kept)), labels).backward()

    def score() -> None:
        with torch.no_grad():
            class_scores(net(images.batch([0], ["none"]).to(device))).cpu()

    uses = config.prm.epochs / len(config.prm.flips)
    updating = _updating(lambda kept: partial(update, kept), config, net.backbone, uses, device)
    net.eval()
    return updating, _seconds(score, device)


def _cim(
    config: Config, data: CimDataset, sample: list[int], device: str, threads: int | None
) -> tuple[float, float]:
    """Seconds of an update, and of an image in the test."""
    settings = config.model
    if settings.weights == "prm":  # which are not there yet
        settings = settings.model_copy(update={"weights": "random"})
    model = build_model(settings, data.coco.num_classes)
    lanes = share_threads(device, threads, config.solver.images_per_update)
    scales = sorted(config.input.train_scales)
    places = zip(itertools.cycle(sample), itertools.cycle(scales), strict=False)
    stream = (data.load(index, scale) for index, scale in places)

    def updates(kept: FeatureCache | None) -> Callable[[], Any]:
        trainer = build_trainer(config, model, device, lanes, kept=kept)
        return lambda: trainer.update(stream)

    views = len(data.labelled()) * len(scales) * len(config.input.train_flips)
    uses = config.solver.max_iter * config.solver.images_per_update / views
    updating = _updating(updates, config, model.Conv_Body, uses, device)

    lanes = share_threads(device, threads, at_most=4)
    model = prepare_for_inference(model, config.runtime, device)

    def test() -> None:
        _, passes = read_passes(data, sample[0], config.test.scales, config.test.flips)
        score_passes(model, passes, device)

    return updating, _seconds(test, device) / lanes


def _updating(
    updates: Callable[[FeatureCache | None], Callable[[], Any]],
    config: Config,
    backbone: Backbone,
    uses: float,
    device: str,
) -> float:
    """Mean seconds of an update.

    Args:
        updates: makes a function that updates once, with a cache or without.
        uses: how often training takes an image at the same scale and flip.
    """
    computed = _seconds(updates(None), device)
    limit = allowed_features(config.runtime.feature_cache_gb, backbone, device)
    if not limit or uses < WORTH:
        return computed
    update = updates(FeatureCache(backbone, 1e9 * limit))
    update()
    found = min(computed, _seconds(update, device))
    return found + (computed - found) / uses


def _seconds(work: Callable[[], Any], device: str) -> float:
    gpu = torch.device(device).type == "cuda"
    for _ in range(2):
        start = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize(device)
        taken = time.perf_counter() - start
        if taken > _SHORT and not gpu:
            break
    return taken
