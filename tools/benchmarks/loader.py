"""Training samples from files, and whether they come as fast as the trainer takes them."""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.drawn import NUM_CLASSES
from benchmarks.network import fastest_precision, two_networks
from benchmarks.overlaps import draw_image
from benchmarks.report import Conditions, Row
from benchmarks.timing import time_together
from lib.config import Config, InputConfig, RuntimeConfig, SolverConfig
from lib.data.coco import CocoImages
from lib.data.loader import CimDataset, train_loader
from lib.engine.build import build_trainer
from lib.files import write_json
from lib.proposals.generate import generate_proposals
from lib.proposals.store import ProposalStore

logger = logging.getLogger(__name__)

SIZE = (375, 500)
NUM_IMAGES = 16
NUM_PROPOSALS = 500


def run(conditions: Conditions) -> Iterator[Row]:
    """Times reading, scaling and waiting, with long sides and workers of the default settings."""
    scales = (64,) if conditions.quick else InputConfig().train_scales
    num_workers = InputConfig().num_workers
    with tempfile.TemporaryDirectory() as folder:
        dataset = _make_dataset(Path(folder), conditions)
        times = time_together(
            {
                "read": lambda: dataset.read(0),
                **{f"load {s}": lambda s=s: dataset.load(0, s, "horizontal") for s in scales},
            },
            seconds=0.1 if conditions.quick else 4,
        )
        count = dataset.store.load(dataset.coco.images[0].file_name).regions.num_proposals
        case = f"P={count}"
        yield Row(f"{case}: image, proposals and regions from files", times["read"].best_ms, "ms")
        for scale in scales:
            yield Row(f"{case}: sample, long side {scale}", times[f"load {scale}"].best_ms, "ms")

        samples = train_loader(
            dataset,
            scales,
            ("none", "horizontal"),
            seed=0,
            num_workers=num_workers,
            pin_memory=conditions.device.type == "cuda",
        )
        seconds, taken = _take(samples, 8 if conditions.quick else 200)
        yield Row(f"{case}: samples of {num_workers} workers", taken / seconds, "samples/s")
        yield from _share_of_waiting(samples, conditions)


def _take(samples: Iterator, count: int) -> tuple[float, int]:
    """Takes samples as fast as they come; those made ahead before the start are left out."""
    for _ in itertools.islice(samples, 8):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(samples, count):
        pass
    return time.perf_counter() - start, count


def _share_of_waiting(samples: Iterator, conditions: Conditions) -> Iterator[Row]:
    # The rate is next to 0, so that random weights do not run away.
    runtime = RuntimeConfig(precision=fastest_precision(conditions))
    solver = SolverConfig(base_lr=1e-12, images_per_update=1)
    config = Config(solver=solver, runtime=runtime)
    trainer = build_trainer(config, two_networks(conditions)[1], str(conditions.device))
    logger.info("loader: updates of one image each")
    trainer.update(samples)
    waited, seconds, updates = 0.0, 0.0, 0
    while updates < 1 or (updates < 20 and seconds < 60 and not conditions.quick):
        start = time.perf_counter()
        waited += trainer.update(samples)["data_wait"]
        seconds += time.perf_counter() - start
        updates += 1
    images = updates * config.solver.images_per_update
    yield Row("training: images", images / seconds, "images/s")
    yield Row(
        "training: share of the time spent waiting for samples",
        100 * waited / seconds,
        "%",
        at_most=None if conditions.quick else 5,
    )


def _make_dataset(folder: Path, conditions: Conditions) -> CimDataset:
    """JPEG files and stored proposals of drawn images, with two classes in each."""
    size, count = ((48, 64), 4) if conditions.quick else (SIZE, NUM_IMAGES)
    store = ProposalStore(folder / "proposals")
    images, annotations = [], []
    for number in range(1, count + 1):
        image = draw_image(size, conditions.seed + number)
        name = f"{number}.jpg"
        cv2.imwrite(str(folder / name), np.ascontiguousarray(image[..., ::-1]))
        store.save(name, generate_proposals(image, NUM_PROPOSALS))
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        for category in (number % NUM_CLASSES, (number + 7) % NUM_CLASSES):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category + 1}
            )
    categories = [{"id": c + 1, "name": f"class {c + 1}"} for c in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "drawn.json", content)
    return CimDataset(CocoImages(folder / "drawn.json"), folder, store)
