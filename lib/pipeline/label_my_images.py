"""From a folder of images and their labels to a mask for every object, and a page to look at."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from shlex import quote

import joblib

from lib.config import Config, load_config
from lib.data.catalog import Dataset
from lib.data.coco import CocoImages
from lib.engine.runs import seconds_trained
from lib.evaluation.coco_files import read_ground_truth
from lib.evaluation.pseudo_labels import summarise
from lib.files import id_key, read_json, write_json
from lib.pipeline.estimate import estimate_seconds
from lib.pipeline.runner import duration, run_steps
from lib.pipeline.steps import Chain
from lib.provenance import changes, file_fingerprint

logger = logging.getLogger(__name__)

AN_HOUR = 3600.0
"""Seconds; networks that took less, and take less, are trained anew unasked."""
PASSES = 17
"""Over every image in the published training on VOC (45,000 updates of 4 of 10,582 images)."""
FEWEST_UPDATES = 500
FEWEST_PRM_UPDATES = 300

PREVIEW_IMAGES = 80
PREVIEW_DETAILS = 12
PREVIEW_SECONDS = 180.0
PREVIEW_UPDATES = 300
PREVIEW_PRM_UPDATES = 75
"""At most; fewer where they would take longer than PREVIEW_SECONDS allow."""


def label_images(
    dataset: Dataset,
    chain: Chain,
    updates: int | None,
    only_plan: bool = False,
    preview: bool = False,
) -> None:
    """Runs all steps and says where the masks are.

    Args:
        chain: with run folder, configuration, device and overwrite; the data set is filled in.
        updates: of CIM; None chooses by the number of images.
        only_plan: says how long it will take, and ends.
        preview: takes a few images and updates, and writes to `preview` in the run folder.

    Raises:
        FileNotFoundError, ValueError: the labels or the settings cannot be used.
        SystemExit: a step failed.
    """
    coco = CocoImages(dataset.json)
    coco.check_files(dataset.images)
    read_ground_truth(dataset.json, need_masks=False)  # the gallery compares with it at the end
    warn_of_few(coco)
    all_images, run, given = len(coco), chain.run, chain.overrides
    if preview:
        run = run / "preview"
        dataset = some_images(dataset, coco, run)
        coco = CocoImages(dataset.json)
    config = load_config(chain.cfg, given)
    scaled = (preview_of if preview else scaled_to)(coco, config, updates)
    files = ("--images", str(dataset.images), "--json", str(dataset.json), "--name", dataset.name)
    chain = replace(chain, data=files, root=dataset.root, run=run, overrides=(*scaled, *given))
    seconds = plan(chain, dataset, coco, preview)
    if only_plan:
        return
    overrides = chain.overrides
    if preview:
        overrides = (*preview_of(coco, config, updates, share_of_learning(seconds)), *given)
        seconds = shortened(seconds)
    longest = max(seconds["prm"] + seconds["train"], seconds_trained(run))
    labels, gallery = run / "pseudo_labels.json", run / "gallery"
    details = ("--details", f"{PREVIEW_DETAILS}") if preview else ()
    options = {
        "pseudo_labels": ("--output", str(labels)),
        "gallery": ("--pseudo-labels", str(labels), "--output", str(gallery), *details),
    }
    overwrite = chain.overwrite or longest < AN_HOUR
    chain = replace(chain, overrides=overrides, overwrite=overwrite, options=options)
    steps = chain.to("pseudo_labels", "gallery", done=["shapes", "test"])
    taken = run_steps(steps, seconds, show_commands=False)
    logger.info(
        f"\nDone in {duration(sum(taken.values()))}: {summarise(read_json(labels))}\n"
        f"  {labels}  the masks, as COCO json\n  {dataset.images}  the images that they fit\n"
        f"  {gallery / 'index.html'}  to look at, in a browser"
    )
    if preview:
        logger.info(
            f"This was a preview: masks of {len(coco)} of {all_images} images, after a short "
            "training on these alone. Without preview=1 all are labelled, and better."
        )
        return
    named = {"output_file": run, "json": dataset.json, "images": dataset.images}
    named |= {"name": dataset.name, "data_root": dataset.root}
    variables = " ".join(f"{name}={quote(str(value))}" for name, value in named.items())
    logger.info(
        "Better masks, by a Mask R-CNN that learns from these (docs/CUSTOM.md#better-masks):\n"
        f"  {variables} bash scripts/refine_msrcnn.sh"
    )


def warn_of_few(coco: CocoImages) -> None:
    """Warns where the labels say too little to learn from."""
    labels = [record.image_labels for record in coco.images if record.image_labels.any()]
    if not labels:
        raise ValueError(f"{coco.path}: no image has a label")
    coco.warn_of_labels()
    if len(labels) < 100:
        logger.warning(
            f"{len(labels)} labelled images are few to learn {coco.num_classes} classes from; "
            "expect rough masks"
        )


def some_images(dataset: Dataset, coco: CocoImages, folder: Path) -> Dataset:
    """A data set of PREVIEW_IMAGES of the labelled images, of all classes in turn.

    Args:
        folder: takes its json and everything made from it.
    """
    of_class = [[r for r in coco.images if r.image_labels[c]] for c in range(coco.num_classes)]
    in_turn = (record for turn in zip_longest(*of_class) for record in turn if record is not None)
    names = list(dict.fromkeys(record.file_name for record in in_turn))[:PREVIEW_IMAGES]
    content = read_json(dataset.json)
    images = [image for image in content["images"] if image["file_name"] in set(names)]
    ids = {id_key(image["id"]) for image in images}
    annotations = [a for a in content["annotations"] if id_key(a["image_id"]) in ids]
    json = folder / "some_images.json"
    write_json(json, {**content, "images": images, "annotations": annotations})
    return Dataset(dataset.name, json, dataset.images, folder / "data")


def preview_of(
    coco: CocoImages, config: Config, updates: int | None, share: float = 1.0
) -> list[str]:
    """Settings of a preview, see `scaled_to`.

    Args:
        share: of the updates.
    """
    updates = max(1, round(share * (PREVIEW_UPDATES if updates is None else updates)))
    batch = min(config.prm.images_per_update, len(coco))
    epochs = max(1, round(share * PREVIEW_PRM_UPDATES * batch / len(coco)))
    warmup = min(config.solver.warmup_iters, updates // 10)
    return [
        *("solver.max_iter", f"{updates}", "solver.steps", f"[{max(1, updates * 2 // 3)}]"),
        *("solver.warmup_iters", f"{warmup}", "prm.epochs", f"{epochs}", "test.flips", "[none]"),
    ]


def share_of_learning(seconds: Mapping[str, float]) -> float:
    """The share of a preview's updates for which there is time; at least a third, as fewer
    would tell nothing."""
    learning = seconds["prm"] + seconds["train"]
    left = PREVIEW_SECONDS - (sum(seconds.values()) - learning)
    return min(1.0, max(1 / 3, left / learning))


def shortened(seconds: Mapping[str, float]) -> dict[str, float]:
    """`seconds` of the steps of a preview with as many updates as there is time for."""
    share = share_of_learning(seconds)
    return {**seconds, "prm": share * seconds["prm"], "train": share * seconds["train"]}


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


def plan(chain: Chain, dataset: Dataset, coco: CocoImages, preview: bool) -> Mapping[str, float]:
    """Seconds that every step will take, measured once and remembered in the run folder.

    For a preview the log shows them `shortened`; the result is not.
    """
    path = chain.run / "estimate.json"
    config = load_config(chain.cfg, chain.overrides)
    made_from = {
        "config": config.model_dump(mode="json"),
        "json": file_fingerprint(dataset.json),
        "device": chain.device,
        "threads": chain.threads,
    }
    if path.is_file():
        before = read_json(path)
        if not changes(before["made_from"], made_from):
            return before["seconds"]
    logger.info("measuring how long it will take ...")
    try:
        seconds = estimate_seconds(
            config, dataset, coco, chain.device, chain.threads, joblib.cpu_count()
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; or use configs/custom_scratch.yaml, which starts from nothing and learns "
            "less (docs/CUSTOM.md)"
        ) from error
    write_json(path, {"made_from": made_from, "seconds": seconds}, indent=2)
    told = shortened(seconds) if preview else seconds
    lines = [f"{len(coco)} images, on {chain.device} with {chain.cfg}:"]
    for name, value in (*told.items(), ("in all", sum(told.values()))):
        lines.append(f"  {name:<13} about {duration(value)}")
    logger.info("\n%s", "\n".join(lines))
    return seconds
