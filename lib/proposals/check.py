"""Reports on the store of proposals of a data set: contents and faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.parallel import for_each, named
from lib.proposals.importing import duplicate_masks
from lib.proposals.store import ProposalStore
from lib.restricted_pickle import find_image, load_by_image
from lib.structures import ImageRecord

_NAMED = 20
"""Images named for each kind of fault."""


@dataclass(frozen=True)
class StoreCheck:
    """Proposals of a data set; images with a fault by file name, with what it is."""

    counts: list[int]
    """Proposals of every image that could be read."""
    num_bytes: int
    duplicates: dict[str, int]
    """Masks equal to an earlier one, where there are any."""
    missing: list[str] = field(default_factory=list)
    wrong_size: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read: damaged, of another version, without proposals or with empty
    ones."""

    @property
    def usable(self) -> bool:
        """Whether every image has proposals of its size; duplicates do no harm."""
        return not (self.missing or self.wrong_size or self.faults)


def check_store(store: ProposalStore, images: Sequence[ImageRecord], jobs: int = -1) -> StoreCheck:
    """Reads the proposals of every image, on several cores."""
    there = {i.file_name: i.size for i in images if store.has(i.file_name)}
    tasks = ((name, (store, name)) for name in there)
    read, faults = for_each(_read, tasks, len(there), jobs, "checking")
    return StoreCheck(
        counts=[count for count, _, _ in read.values()],
        num_bytes=sum(store.path(name).stat().st_size for name in there),
        duplicates={name: same for name, (_, same, _) in read.items() if same},
        missing=[image.file_name for image in images if image.file_name not in there],
        wrong_size={
            name: f"{store.path(name)}: proposals of {height}x{width}, the image is "
            f"{there[name][0]}x{there[name][1]} (height x width)"
            for name, (_, _, (height, width)) in read.items()
            if (height, width) != there[name]
        },
        faults=faults,
    )


def _read(store: ProposalStore, file_name: str) -> tuple[int, int, tuple[int, int]]:
    """Proposals, how many equal an earlier one, size of the image."""
    regions = store.load_regions(file_name)
    return regions.num_proposals, len(duplicate_masks(regions)), regions.size


def compare_with_published(
    store: ProposalStore, images: Sequence[ImageRecord], pickle: str | Path, jobs: int = -1
) -> tuple[int, dict[str, str]]:
    """Whether the store holds the proposals, in the order, of a published cob/*.pkl.

    Published labels by proposal (label_assign) are of use only where it does. Boxes are compared
    after clipping; of 7x7 masks a twentieth of the cells may differ, since the published ones
    depend on rounding where a cell's centre falls between two pixels.

    Returns:
        (images that agree, what differs by file name).
    """
    by_image = load_by_image(pickle, "boxes", "masks")
    tasks = (
        (i.file_name, (store, i.file_name, find_image(by_image, i.known_as, i.file_name)))
        for i in images
    )
    results, failures = for_each(_difference, tasks, len(images), jobs, "comparing")
    different = {name: text for name, text in results.items() if text} | failures
    return len(images) - len(different), different


def _difference(
    store: ProposalStore, file_name: str, published: tuple[Any, Any] | None
) -> str | None:
    if published is None:
        return "not in the published file"
    proposals = store.load(file_name)
    boxes, masks = np.asarray(published[0], np.float64), np.asarray(published[1])
    if boxes.shape != proposals.boxes.shape:
        return f"boxes of shape {proposals.boxes.shape} here, {boxes.shape} there"
    height, width = proposals.regions.size
    limit = np.array([width - 1, height - 1, width - 1, height - 1])
    other = np.flatnonzero((np.clip(boxes, 0, limit) != proposals.boxes).any(axis=1))
    if len(other):
        return f"{len(other)} of {len(boxes)} boxes differ, the first is number {other[0]}"
    if masks.shape != proposals.roi_masks.shape:
        return None  # whole masks, whose boxes agree
    differing = ((masks != 0) != proposals.roi_masks).mean()
    return f"{differing:.0%} of the cells of the 7x7 masks differ" if differing > 0.05 else None


def check_text(check: StoreCheck, store: ProposalStore, num_images: int) -> str:
    """The check as lines for a reader."""
    lines = [f"{store.folder}: {len(check.counts)} of {num_images} images have readable proposals"]
    if check.counts:
        lines.append(
            f"proposals an image: {min(check.counts)} at least, {np.median(check.counts):g} "
            f"median, {max(check.counts)} at most, {sum(check.counts)} in all"
        )
    each = check.num_bytes / max(len(check.counts), 1)
    duplicates = {name: f"{n} masks equal an earlier one" for name, n in check.duplicates.items()}
    lines += [
        f"disk: {check.num_bytes / 1e6:.1f} MB, {each / 1e3:.1f} KB an image",
        named_text(dict.fromkeys(check.missing, "no proposals"), "without proposals"),
        named_text(check.wrong_size, "of another size than their image"),
        named_text(check.faults, "with a damaged file, zero proposals or empty masks"),
        named_text(duplicates, "with duplicate masks (no harm)"),
    ]
    return "\n".join(lines)


def named_text(reasons: dict[str, str], what: str) -> str:
    """Number of images with this fault, and the first of them with the reason."""
    return "\n".join([f"images {what}: {len(reasons)}", *named(reasons, _NAMED)])
