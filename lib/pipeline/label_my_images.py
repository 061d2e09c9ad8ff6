"""From a folder of images and their labels to a mask for every object, and a page to look at."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import joblib

from lib.config import Config, load_config
from lib.data.catalog import Dataset
from lib.data.coco import CocoImages
from lib.engine.runs import seconds_trained
from lib.evaluation.coco_files import read_ground_truth
from lib.evaluation.pseudo_labels import summarise
from lib.files import read_json, write_json
from lib.pipeline.estimate import estimate_seconds
from lib.pipeline.runner import duration, run_steps
from lib.pipeline.steps import Chain, data_words
from lib.provenance import changes, file_fingerprint

logger = logging.getLogger(__name__)

AN_HOUR = 3600.0
"""Seconds; networks that took less, and take less, are trained anew unasked."""
PASSES = 17
"""Over every image in the published training on VOC (45,000 updates of 4 of 10,582 images)."""
FEWEST_UPDATES = 500
FEWEST_PRM_UPDATES = 300


@dataclass(frozen=True)
class Settings:
    """What the user may choose."""

    output: Path
    """Takes all that is made; it is the run folder as well."""
    cfg: Path
    overrides: tuple[str, ...] = ()
    updates: int | None = None
    """Of CIM; None: by the number of images."""
    score_thresh: float = 0.3
    device: str = "cpu"
    threads: int | None = None
    overwrite: bool = False
    """Train anew what was trained with other data or settings, however long it takes."""
    only_plan: bool = False
    """Say how long it will take, and end."""


def label_images(dataset: Dataset, settings: Settings) -> None:
    """Runs all steps and says where the masks are.

    Raises:
        FileNotFoundError, ValueError: the labels or the settings cannot be used.
        SystemExit: a step failed.
    """
    coco = CocoImages(dataset.json)
    coco.check_files(dataset.images)
    read_ground_truth(dataset.json, need_masks=False)  # the gallery compares with it at the end
    warn_of_few(coco)
    config = load_config(settings.cfg, settings.overrides)
    overrides = (*scaled_to(coco, config, settings.updates), *settings.overrides)
    config = load_config(settings.cfg, overrides)
    seconds = plan(settings, config, dataset, coco)
    if settings.only_plan:
        return
    longest = max(seconds["prm"] + seconds["train"], seconds_trained(settings.output))
    labels, gallery = settings.output / "pseudo_labels.json", settings.output / "gallery"
    threshold = ("--score-thresh", f"{settings.score_thresh}")
    chain = Chain(
        dataset.name,
        data_words(dataset),
        dataset.root,
        settings.cfg,
        overrides,
        run=settings.output,
        device=settings.device,
        threads=settings.threads,
        overwrite=settings.overwrite or longest < AN_HOUR,
        options={
            "pseudo_labels": (*threshold, "--output", str(labels)),
            "gallery": ("--pseudo-labels", str(labels), "--output", str(gallery)),
        },
    )
    steps = chain.to("pseudo_labels", "gallery", done=["shapes", "test"])
    taken = run_steps(steps, seconds, show_commands=False)
    logger.info(
        "\nDone in %s: %s\n  %s  the masks, as COCO json\n  %s  the images that they fit\n"
        "  %s  to look at, in a browser",
        duration(sum(taken.values())),
        summarise(read_json(labels)),
        labels,
        dataset.images,
        gallery / "index.html",
    )


def warn_of_few(coco: CocoImages) -> None:
    """Warns where the labels say too little to learn from."""
    labels = [record.image_labels for record in coco.images if record.image_labels.any()]
    if not labels:
        raise ValueError(f"{coco.path}: no image has a label")
    coco.warn_of_labels()
    if len(labels) < 100:
        logger.warning(
            "%d labelled images are few to learn %d classes from; expect rough masks",
            len(labels),
            coco.num_classes,
        )


def scaled_to(coco: CocoImages, config: Config, updates: int | None) -> list[str]:
    """Settings that follow from the number of images, up to the limits of the configuration."""
    images = len(coco) - coco.without_labels
    if updates is None:
        wanted = math.ceil(PASSES * images / config.solver.images_per_update)
        updates = min(config.solver.max_iter, max(FEWEST_UPDATES, wanted))
    elif updates < 1:
        raise ValueError(f"{updates} updates: at least 1 is needed")
    batch = min(config.prm.images_per_update, images)
    epochs = max(config.prm.epochs, math.ceil(FEWEST_PRM_UPDATES * batch / images))
    return [
        *("solver.max_iter", f"{updates}", "solver.steps", f"[{max(1, updates * 2 // 3)}]"),
        *("prm.epochs", f"{epochs}"),
    ]


def plan(
    settings: Settings, config: Config, dataset: Dataset, coco: CocoImages
) -> Mapping[str, float]:
    """Seconds that every step will take, measured once and remembered in the output folder."""
    path = settings.output / "estimate.json"
    made_from = {
        "config": config.model_dump(mode="json"),
        "json": file_fingerprint(dataset.json),
        "device": settings.device,
        "threads": settings.threads,
    }
    if path.is_file():
        before = read_json(path)
        if not changes(before["made_from"], made_from):
            return before["seconds"]
    logger.info("measuring how long it will take ...")
    try:
        seconds = estimate_seconds(
            config, dataset, coco, settings.device, settings.threads, joblib.cpu_count()
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; or use configs/custom_scratch.yaml, which starts from nothing and learns "
            "less (docs/CUSTOM.md)"
        ) from error
    write_json(path, {"made_from": made_from, "seconds": seconds}, indent=2)
    lines = [f"{len(coco)} images, on {settings.device} with {settings.cfg}:"]
    for name, value in (*seconds.items(), ("in all", sum(seconds.values()))):
        lines.append(f"  {name:<13} about {duration(value)}")
    logger.info("\n%s", "\n".join(lines))
    return seconds
