"""Test: scores averaged over scales and mirrorings, and the detections of a whole data set."""

from __future__ import annotations

import glob
import itertools
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lib.data.coco import CocoImages
from lib.data.loader import CimDataset, ImageDataset, ReadImage
from lib.data.transforms import Flip
from lib.engine.distributed import ALONE, Ranks
from lib.engine.journal import Journal
from lib.evaluation.detections import select_detections, to_coco_results
from lib.files import atomic_file, read_json, remove_parts, write_json
from lib.modeling.scoring import score_passes
from lib.provenance import MadeFrom, beside, changes, fingerprint, listed, masks_seen
from lib.refine.detect import InstanceDetector
from lib.structures import Detections, ImageRecord, ReadInstances, Sample, View

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_passes(
    dataset: CimDataset, index: int, scales: Sequence[int], flips: Sequence[Flip]
) -> tuple[ReadImage, list[Sample]]:
    """Reads an image and makes all its passes; the files are read once.

    Raises:
        FileNotFoundError, ValueError: as `CimDataset.read`.
    """
    read = dataset.read(index)
    return read, [dataset.view(read, scale, flip) for scale in scales for flip in flips]


def map_ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], num_threads: int
) -> Iterator[_Result]:
    """`map` that makes up to `num_threads` + 1 results ahead in threads; 0 makes none ahead."""
    if num_threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > num_threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


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
    """Per image; None keeps all."""
    only_image_labels: bool = False
    """Detect only the classes that an image is labelled with."""
    device: torch.device | str = "cpu"
    mil_branch: bool = False
    """The score of the MIL branch counts beside that of the stages."""

    def prepare(self, dataset: CimDataset, index: int) -> tuple[ReadImage, list[View]]:
        """Reads image `index` once for all passes; may run in another thread."""
        read, passes = read_passes(dataset, index, self.scales, self.flips)
        views = [sample.view() for sample in passes]
        if torch.device(self.device).type == "cuda":
            views = [view.pin_memory() for view in views]
        return read, views

    def __call__(self, read: ReadImage, passes: Sequence[View]) -> list[dict[str, Any]]:
        """COCO results of one image, best first."""
        found, image_id = self.select(read, passes), read.record.image_id
        return to_coco_results(found, read.proposals.regions, image_id, self.category_ids)

    def select(self, read: ReadImage, passes: Sequence[View]) -> Detections:
        """Detections of one image, best first; none without proposals."""
        scores = np.zeros((0, len(self.category_ids)))
        if len(read.proposals):
            scores = score_passes(self.model, passes, self.device, self.mil_branch).numpy()
        return select_detections(
            scores,
            read.proposals.boxes,
            self.score_thresh,
            self.nms_thresh,
            self.max_detections,
            keep_classes=read.record.image_labels if self.only_image_labels else None,
        )


def detect_dataset(
    detector: Detector | InstanceDetector,
    dataset: ImageDataset,
    output: Path,
    made_from: MadeFrom,
    of_images: Mapping[int, str],
    num_threads: int = 0,
    ranks: Ranks = ALONE,
) -> bool:
    """Writes the detections on every image to `output`, in the order of the data set.

    Finished images are kept in journals beside `output`, one for each rank, from which an
    interrupted run resumes, with any number of ranks. `<output stem>.made_from.json` is the record
    of `output`: of an older one only the images that are out of date are done again.

    Args:
        made_from: what the detections on all images depend on: weights and settings.
        of_images: fingerprint of what those on one image depend on beside it, by image id.
        num_threads: threads that prepare the next images meanwhile and, without a GPU, also score
            them.
        ranks: the processes that share the images; all must see the folder of `output`.

    Returns:
        Whether there was anything to do.

    Raises:
        FileNotFoundError, ValueError: an image or its proposals cannot be used; the ranks see
            different folders; another process writes to it.
    """
    made_from, of_images = ranks.from_first((made_from, of_images))
    record = {"made_from": made_from, "images": {str(n): of for n, of in of_images.items()}}
    if made_from.get("only_image_labels"):
        record["image_labels"] = labels_fingerprint(dataset.coco.images)
    if _is_complete(output, record, ranks):
        return False
    those_here = [_journal(output, rank) for rank in range(ranks.count)]
    own = those_here[ranks.rank]
    detector.model.to(detector.device).eval()
    images = dataset.coco.images
    with Journal(own, made_from, of_images) as journal:
        # Opening may have waited until another process had finished.
        if _is_complete(output, record, ranks):
            return False
        if ranks.is_first:
            for image_id, results in _still_good(output, record):
                if image_id not in journal.done:
                    journal.append(image_id, results)
        done = set(journal.done)
        if ranks.is_first:  # a test that was interrupted may have had more ranks
            for path in _journals(output).difference(those_here):
                with Journal(path, made_from, of_images) as other:
                    done.update(other.done)
        done = set().union(*ranks.gather(done))
        if not all(ranks.gather(those_here[0].is_file())):
            raise ValueError(
                f"{output.parent}: not all processes see the same files there; it must lie on a "
                "disk that all machines share"
            )
        if done:
            logger.info("%s: resuming after %d images", own, len(done))
        todo = ranks.share_of([n for n, i in enumerate(images) if i.image_id not in done])
        bar = tqdm(
            _detections(detector, dataset, todo, num_threads),
            desc="testing",
            total=len(todo) + len(done),
            initial=len(done),
            unit="image",
            disable=not ranks.is_first,
        )
        without = 0
        for read, results in bar:
            without += not results
            journal.append(read.record.image_id, results)
    # Journals of other machines are only sure to be seen once they are closed.
    ranks.wait(patiently=True)
    without = sum(ranks.gather(without))
    if ranks.is_first:
        paths = _journals(output).union(those_here)
        beside(output).unlink(missing_ok=True)
        _write_list(output, _merged(paths, made_from, of_images, dataset.coco))
        write_json(beside(output), record)
        _tidy(output)
        if without:
            logger.warning("%d images have no detections", without)
    ranks.wait(patiently=True)
    return True


def labels_fingerprint(images: Sequence[ImageRecord]) -> str:
    """Fingerprint of the image labels of a data set."""
    return fingerprint({str(image.image_id): image.image_labels for image in images})


def check_detections(detections: Path, coco_json: Path) -> None:
    """Raises ValueError where detections are restricted to other image labels than a json has.

    Files without a record, which others have made, are accepted.
    """
    labels = (_record_of(detections) or {}).get("image_labels")
    if labels and labels != labels_fingerprint(CocoImages(coco_json).images):
        raise ValueError(
            f"{detections}: made for other image labels than {coco_json} has now; bring them up to "
            "date with tools/test_net.py --image-labels"
        )


def made_with_masks(detections: Path) -> dict[str, list[str]]:
    """Networks trained with masks, by the record of detections; see `masks_seen`."""
    return masks_seen((_record_of(detections) or {}).get("made_from"))


def _is_complete(output: Path, record: MadeFrom, ranks: Ranks) -> bool:
    """Whether rank 0 sees a complete result; if so, removes what is left beside it."""
    complete = _record_of(output) == record
    complete = ranks.gather(complete)[0]  # when all have come here: none opens a journal later
    if complete and ranks.is_first:
        _tidy(output)
    return complete


def _record_of(output: Path) -> MadeFrom | None:
    """The record of an older result; None without one."""
    return read_json(beside(output)) if output.is_file() and beside(output).is_file() else None


def _still_good(output: Path, record: MadeFrom) -> Iterator[tuple[int, list[Any]]]:
    """(image id, results) of the images for which an older `output` is up to date; says why not."""
    before = _record_of(output)
    if before is None:
        return
    if different := changes(before.get("made_from"), record["made_from"]):
        logger.info("%s: out of date: %s", output, listed(different))
        return
    images = record["images"]
    good = {int(n) for n, of in images.items() if before["images"].get(n) == of}
    logger.info(
        "%s: out of date: %d of %d images, proposals or labels changed",
        output,
        len(images) - len(good),
        len(images),
    )
    with output.open("rb") as file:
        items = (json.loads(line.rstrip(b",\n")) for line in file if line.startswith(b"{"))
        for image_id, results in itertools.groupby(items, lambda item: item["image_id"]):
            if image_id in good:
                yield image_id, list(results)
                good.remove(image_id)
    yield from ((image_id, []) for image_id in good)


def _journal(output: Path, rank: int) -> Path:
    number = f".{rank}" if rank else ""
    return output.with_name(f"{output.stem}.journal{number}.jsonl")


def _journals(output: Path) -> set[Path]:
    """Existing journals, of any number of ranks."""
    return set(output.parent.glob(f"{glob.escape(output.stem)}.journal*.jsonl"))


def _tidy(output: Path) -> None:
    """Removes journals and the leftovers of killed writers beside a complete result."""
    for path in _journals(output):
        path.unlink(missing_ok=True)
    remove_parts(output)
    remove_parts(beside(output))


def _merged(
    paths: Iterable[Path], made_from: MadeFrom, of_images: Mapping[int, str], coco: CocoImages
) -> Iterator[dict[str, Any]]:
    """The results in all journals, in the order of the data set."""
    with ExitStack() as stack:
        journals = [stack.enter_context(Journal(path, made_from, of_images)) for path in paths]
        of_image = {image_id: journal for journal in journals for image_id in journal.done}
        for record in coco.images:
            yield from of_image[record.image_id].results_of(record.image_id)


def _detections(
    detector: Detector | InstanceDetector,
    dataset: ImageDataset,
    image_idx: Sequence[int],
    num_threads: int,
) -> Iterator[tuple[ReadImage | ReadInstances, list[dict[str, Any]]]]:
    """Images in the given order with their COCO results."""
    in_threads = torch.device(detector.device).type == "cpu"

    def prepare(index: int) -> tuple[ReadImage | ReadInstances, Any]:
        read, views = detector.prepare(dataset, index)
        return read, detector(read, views) if in_threads else views

    for read, found in map_ahead(prepare, image_idx, num_threads):
        yield read, found if in_threads else detector(read, found)


def _write_list(path: Path, items: Iterable[Any]) -> None:
    """Writes a JSON list, one item a line, without holding it in memory."""
    with atomic_file(path) as file:
        file.write(b"[")
        for number, item in enumerate(items):
            file.write((b",\n" if number else b"\n") + json.dumps(item, allow_nan=False).encode())
        file.write(b"\n]\n")
