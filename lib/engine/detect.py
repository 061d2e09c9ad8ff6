"""Detections of a whole data set, as a file in COCO's result format."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from lib.data.coco import CocoImages, ImageRecord
from lib.data.loader import CimDataset, ReadImage
from lib.data.transforms import Flip
from lib.engine.inference import map_ahead, read_passes, score_passes
from lib.engine.journal import Journal
from lib.evaluation.detections import select_detections, to_coco_results
from lib.files import atomic_file, read_json, write_json
from lib.structures import Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detector:
    """From an image and its proposals to detections: test-time augmentation and selection."""

    model: nn.Module
    category_ids: Sequence[int]
    """COCO category id of every class."""
    scales: tuple[int, ...]
    flips: tuple[Flip, ...]
    score_thresh: float
    nms_thresh: float
    max_detections: int | None
    """Of an image; None keeps all."""
    only_image_labels: bool = False
    """Detect only the classes that an image is labelled with."""
    device: torch.device | str = "cpu"

    def prepare(self, dataset: CimDataset, index: int) -> tuple[ReadImage, list[Sample]]:
        """Reads image `index`, once, for all passes; may run in another thread."""
        return read_passes(dataset, index, self.scales, self.flips)

    def __call__(self, read: ReadImage, passes: Sequence[Sample]) -> list[dict[str, Any]]:
        """COCO results of one image, best first; [] without proposals."""
        proposals = read.proposals
        if not len(proposals):
            return []
        detections = select_detections(
            score_passes(self.model, passes, self.device).numpy(),
            proposals.boxes,
            self.score_thresh,
            self.nms_thresh,
            self.max_detections,
            keep_classes=read.record.image_labels if self.only_image_labels else None,
        )
        return to_coco_results(
            detections, proposals.regions, read.record.image_id, self.category_ids
        )


class DetectsImages(Protocol):
    """What is needed of a Detector, of whatever network."""

    model: nn.Module
    device: torch.device | str

    def prepare(self, dataset: Any, index: int) -> tuple[Read, Any]: ...

    def __call__(self, read: Read, views: Any) -> list[dict[str, Any]]: ...


class Read(Protocol):
    record: ImageRecord


class Images(Protocol):
    coco: CocoImages


def detect_dataset(
    detector: DetectsImages,
    dataset: Images,
    output: Path,
    made_from: Mapping[str, Any],
    num_threads: int = 0,
) -> bool:
    """Writes the detections on every image to `output`.

    What is finished stands in a journal beside `output`, from which an interrupted run goes on;
    a finished one is not repeated. `<output stem>.made_from.json` tells what `output` shows.

    Args:
        made_from: plain JSON values that the detections depend on: checkpoint, data, settings.
        num_threads: that work on the next images meanwhile: they prepare them and, without a GPU,
            score them as well.

    Returns:
        Whether there was anything to do.

    Raises:
        FileNotFoundError, ValueError: an image or its proposals cannot be used.
    """
    told = output.with_name(f"{output.stem}.made_from.json")
    if output.is_file() and told.is_file() and read_json(told) == made_from:
        return False
    detector.model.to(detector.device).eval()
    images = dataset.coco.images
    without_detections = 0
    with Journal(output.with_name(f"{output.stem}.journal.jsonl"), made_from) as journal:
        if journal.done:
            logger.info("%s: going on after %d images", journal.path, len(journal.done))
        todo = [n for n, record in enumerate(images) if record.image_id not in journal.done]
        stream = _detections(detector, dataset, todo, num_threads)
        start = len(images) - len(todo)
        for read, results in tqdm(stream, "testing", len(images), initial=start, unit="image"):
            without_detections += not results
            journal.append(read.record.image_id, results)
        told.unlink(missing_ok=True)
        _write_list(output, journal.results())
        write_json(told, made_from, indent=2)
        journal.path.unlink()
    if without_detections:
        logger.warning("%d images have no detections", without_detections)
    return True


def _detections(
    detector: DetectsImages, dataset: Images, image_idx: Sequence[int], num_threads: int
) -> Iterator[tuple[Read, list[dict[str, Any]]]]:
    """Images in the given order with their COCO results."""

    def prepare(index: int) -> tuple[Read, Any]:
        return detector.prepare(dataset, index)

    def detect(index: int) -> tuple[Read, list[dict[str, Any]]]:
        read, views = prepare(index)
        return read, detector(read, views)

    if torch.device(detector.device).type == "cpu":
        yield from map_ahead(detect, image_idx, num_threads)
        return
    for read, views in map_ahead(prepare, image_idx, num_threads):
        yield read, detector(read, views)


def _write_list(path: Path, items: Iterable[Any]) -> None:
    """Writes a JSON list, one item a line, without holding it in memory."""
    with atomic_file(path) as file:
        file.write(b"[")
        for number, item in enumerate(items):
            file.write((b",\n" if number else b"\n") + json.dumps(item, allow_nan=False).encode())
        file.write(b"\n]\n")
