"""Makes samples of a data set's files, for training in an order that can be resumed anywhere."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from lib.data.coco import CocoImages, ImageRecord
from lib.data.images import read_image
from lib.data.transforms import (
    FLIPS,
    Flip,
    mirror_boxes,
    mirror_image,
    mirror_roi_masks,
    normalise,
    resize_long_side,
)
from lib.data.workers import load_ahead
from lib.proposals.store import ImageStore, ProposalStore
from lib.provenance import MadeFrom
from lib.structures import Clusters, Proposals, Sample, TrainingSample

log = logging.getLogger(__name__)

_BYTES_PER_PIXEL = 3 + 4
"""RGB and a region label."""


@dataclass(frozen=True, eq=False)
class ReadImage:
    """Image data before scaling and mirroring."""

    record: ImageRecord
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    proposals: Proposals
    clusters: Clusters


def no_clusters(num_proposals: int) -> Clusters:
    """Clusters without any member."""
    none = np.zeros(num_proposals, np.int64)
    return Clusters(number=none, column=none - 1)


class ImageDataset:
    """The images of a data set as samples for a network.

    Args:
        num_bytes: of all images and what belongs to them in memory.
        memory_limit: bytes; a data set that needs less is read only once (by each process that
            reads) and then kept.
    """

    label_name: str
    """The kind of label without which an image cannot be trained on, for messages."""

    def __init__(
        self, coco: CocoImages, image_dir: str | Path, num_bytes: int, memory_limit: int
    ) -> None:
        self.coco = coco
        self.image_dir = Path(image_dir)
        self.keeps = num_bytes <= memory_limit
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.coco)

    def drawn(self) -> list[int]:
        """Indices of what a training draws from."""
        return self.labelled()

    def load(self, index: int, long_side: int, flip: Flip = "none") -> TrainingSample:
        """`read` and `view` in one."""
        return self.view(self.read(index), long_side, flip)

    def read(self, index: int) -> Any:
        """Reads image `index` and what belongs to it.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or does not fit the others or the json.
        """
        if index in self._kept:
            return self._kept[index]
        read = self._read(self.coco.images[index])
        if self.keeps:
            self._kept[index] = read
        return read


class CimDataset(ImageDataset):
    """The images of a data set with their proposals and, for training, their clusters.

    Args:
        clusters: a ClusterStore; None gives samples without clusters.
        memory_limit: see ImageDataset.
        made_from: records of what can be sampled, by file name, see lib/provenance.py.
    """

    label_name = "label"

    def __init__(
        self,
        coco: CocoImages,
        image_dir: str | Path,
        store: ProposalStore,
        clusters: ImageStore | None = None,
        memory_limit: int = 0,
        made_from: Mapping[str, MadeFrom] | None = None,
    ) -> None:
        pixels = sum(record.height * record.width for record in coco.images)
        super().__init__(coco, image_dir, pixels * _BYTES_PER_PIXEL, memory_limit)
        self.made_from = made_from or {}
        self.store = store
        self.clusters = clusters

    def labelled(self) -> list[int]:
        """Indices of the images that can be trained on: those with an image-level label."""
        return [n for n, record in enumerate(self.coco.images) if record.image_labels.any()]

    def _read(self, record: ImageRecord) -> ReadImage:
        proposals = self.store.load(record.file_name, size=record.size)
        if self.clusters is None or not record.image_labels.any():
            clusters = no_clusters(len(proposals))
        else:
            clusters = self.clusters.load(record.file_name, len(proposals))
        image = read_image(self.image_dir / record.file_name, record.size)
        return ReadImage(record, image, proposals, clusters)

    @staticmethod
    def view(read: ReadImage, long_side: int, flip: Flip = "none") -> Sample:
        """Mirrors an image and then scales it to `long_side`."""
        record, proposals = read.record, read.proposals
        image, factor = resize_long_side(mirror_image(read.image, flip), long_side)
        boxes = mirror_boxes(proposals.boxes, record.size, flip) * np.float32(factor)
        roi_masks = mirror_roi_masks(proposals.roi_masks, flip)
        return Sample(
            image_id=record.image_id,
            file_name=record.file_name,
            image=normalise(image),
            boxes=torch.from_numpy(boxes),
            roi_masks=torch.from_numpy(roi_masks).float(),
            membership=torch.from_numpy(proposals.regions.membership),
            areas=torch.from_numpy(proposals.regions.areas),
            image_labels=torch.from_numpy(record.image_labels.copy()),
            cluster_id=torch.as_tensor(read.clusters.number),
            cluster_column=torch.as_tensor(read.clusters.column),
        )


class TrainSampler(Sampler[tuple[int, int, Flip]]):
    """An endless stream of (index, long side, flip), the same for the same seed.

    In an epoch every image comes once for every flip, in a random order, each time with a long
    side drawn from `scales`. Every epoch is drawn from (seed, epoch) alone, so that the stream
    can be taken up at any position without drawing what lies before it.

    Args:
        start: how many items of the stream to leave out.
        step: of what follows, every `step`-th item is given.
    """

    def __init__(
        self,
        num_images: int,
        scales: Sequence[int],
        flips: Sequence[Flip],
        seed: int,
        start: int = 0,
        step: int = 1,
    ) -> None:
        if num_images < 1 or not scales or not flips or start < 0 or step < 1:
            raise ValueError(
                "training needs at least one image, scale and flip, a start of at least 0 and a "
                f"step of at least 1, got {num_images} images, scales {list(scales)}, flips "
                f"{list(flips)}, start {start}, step {step}"
            )
        if unknown := set(flips) - set(FLIPS):
            raise ValueError(f"unknown flips {sorted(unknown)}; known: {', '.join(FLIPS)}")
        self.num_images = num_images
        self.scales = tuple(scales)
        self.flips = tuple(flips)
        self.seed = seed
        self.start = start
        self.step = step

    @property
    def epoch_length(self) -> int:
        return self.num_images * len(self.flips)

    def __iter__(self) -> Iterator[tuple[int, int, Flip]]:
        epoch, position = divmod(self.start, self.epoch_length)
        stream = itertools.chain.from_iterable(map(self._epoch, itertools.count(epoch)))
        return itertools.islice(stream, position, None, self.step)

    def _epoch(self, epoch: int) -> list[tuple[int, int, Flip]]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.epoch_length)
        scales = rng.integers(len(self.scales), size=self.epoch_length)
        return [
            (int(item // len(self.flips)), self.scales[s], self.flips[item % len(self.flips)])
            for item, s in zip(order, scales, strict=True)
        ]


def train_loader(
    dataset: ImageDataset,
    scales: Sequence[int],
    flips: Sequence[Flip],
    seed: int,
    start: int = 0,
    num_workers: int = 0,
    step: int = 1,
    pin_memory: bool = False,
) -> Iterator[TrainingSample]:
    """An endless stream of training samples; images without labels are left out.

    The stream depends on the seed and not on `num_workers`. Samples are made ahead, so the
    position to resume from is the number of samples taken, which the caller counts.

    Args:
        start: how many samples to leave out.
        num_workers: processes that make samples; 0 makes them in this one.
        step: gives every `step`-th sample only, where others take those between.
        pin_memory: in pinned memory, for copies to a GPU that nothing waits for.

    Raises:
        FileNotFoundError, ValueError: when the sample that `dataset.load` raised it for is
            due; also where no image has a label.
    """
    labelled = dataset.labelled()
    if not labelled:
        raise ValueError(
            f"{dataset.coco.path}: none of its {len(dataset)} images has an image-level label; "
            "training needs annotations that are not crowds"
        )
    if len(labelled) < len(dataset):
        log.warning(
            f"{dataset.coco.path}: training leaves out {len(dataset) - len(labelled)} of "
            f"{len(dataset)} images, which have no {dataset.label_name}"
        )
    drawn = dataset.drawn()
    sampler = TrainSampler(len(drawn), scales, flips, seed, start, step)
    return load_ahead(partial(_load, dataset, drawn), sampler, num_workers, pin_memory, seed)


def _load(
    dataset: ImageDataset, image_idx: Sequence[int], request: tuple[int, int, Flip]
) -> TrainingSample:
    """Loads what the sampler asks for; of a module, so that it can go to another process."""
    number, long_side, flip = request
    return dataset.load(image_idx[number], long_side, flip)
