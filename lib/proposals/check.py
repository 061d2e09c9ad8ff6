"""What a store of proposals holds for a data set, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.parallel import for_each
from lib.proposals.importing import duplicate_masks
from lib.proposals.store import ProposalStore
from lib.restricted_pickle import find_image, load_by_image
from lib.structures import ImageRecord, Proposals

_NAMED = 20
"""Images named for each kind of fault."""


@dataclass(frozen=True)
class ImageCheck:
    """One image; the store neither writes nor reads empty masks, so they are among the faults."""

    num_proposals: int = 0
    num_duplicates: int = 0
    num_bytes: int = 0
    wrong_size: str | None = None
    fault: str | None = None
    """Why its file cannot be read: damaged, of another version, no proposals or empty ones."""


@dataclass(frozen=True)
class StoreCheck:
    """All images of a data set."""

    counts: list[int]
    """Proposals of every image that could be read."""
    num_bytes: int
    duplicates: dict[str, int]
    """Masks equal to an earlier one, by image; images without such are left out."""
    missing: list[str] = field(default_factory=list)
    wrong_size: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether every image has proposals of its size; duplicates do no harm."""
        return not (self.missing or self.wrong_size or self.faults)


def check_store(store: ProposalStore, images: Sequence[ImageRecord], jobs: int = -1) -> StoreCheck:
    """Reads the proposals of every image, on several cores."""
    missing = [image.file_name for image in images if not store.has(image.file_name)]
    there = [image for image in images if store.has(image.file_name)]
    tasks = ((i.file_name, (store, i.file_name, tuple(i.size))) for i in there)
    checks, failures = for_each(_check_image, tasks, len(there), jobs, "checking")
    return StoreCheck(
        counts=[c.num_proposals for c in checks.values() if c.fault is None],
        num_bytes=sum(c.num_bytes for c in checks.values()),
        duplicates={name: c.num_duplicates for name, c in checks.items() if c.num_duplicates},
        missing=missing,
        wrong_size={name: c.wrong_size for name, c in checks.items() if c.wrong_size},
        faults={name: c.fault for name, c in checks.items() if c.fault} | failures,
    )


def _check_image(store: ProposalStore, file_name: str, size: tuple[int, int]) -> ImageCheck:
    path = store.path(file_name)
    num_bytes = path.stat().st_size
    try:
        regions = store.load_regions(file_name)
    except ValueError as error:
        return ImageCheck(num_bytes=num_bytes, fault=str(error))
    wrong = None
    if regions.size != size:
        wrong = (
            f"{path}: proposals of {regions.size[0]}x{regions.size[1]}, the image is "
            f"{size[0]}x{size[1]} (height x width)"
        )
    return ImageCheck(regions.num_proposals, len(duplicate_masks(regions)), num_bytes, wrong)


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
    results, failures = for_each(_compare_image, tasks, len(images), jobs, "comparing")
    different = {name: text for name, text in results.items() if text} | failures
    return len(images) - len(different), different


def _compare_image(
    store: ProposalStore, file_name: str, published: tuple[Any, Any] | None
) -> str | None:
    if published is None:
        return "not in the published file"
    proposals = store.load(file_name)
    boxes = np.asarray(published[0], np.float64)
    if boxes.shape != proposals.boxes.shape:
        return f"boxes of shape {proposals.boxes.shape} here, {boxes.shape} there"
    height, width = proposals.regions.size
    limit = np.array([width - 1, height - 1, width - 1, height - 1])
    other = (np.clip(boxes, 0, limit) != proposals.boxes).any(axis=1)
    if other.any():
        first = np.flatnonzero(other)[0]
        return f"{other.sum()} of {len(boxes)} boxes differ, the first is number {first}"
    return _compare_roi_masks(proposals, published[1])


def _compare_roi_masks(proposals: Proposals, published: Any) -> str | None:
    masks = np.asarray(published)
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
    return "\n".join(
        [
            *lines,
            f"disk: {check.num_bytes / 1e6:.1f} MB, {each / 1e3:.1f} KB an image",
            named_text(dict.fromkeys(check.missing, "no proposals"), "without proposals"),
            named_text(check.wrong_size, "of another size than their image"),
            named_text(check.faults, "with a damaged file, zero proposals or empty masks"),
            named_text(duplicates, "with duplicate masks (no harm)"),
        ]
    )


def named_text(reasons: dict[str, str], what: str) -> str:
    """How many images something is the matter with, and the first of them by name."""
    lines = [f"images {what}: {len(reasons)}"]
    lines += [f"  {name}: {reason}" for name, reason in list(reasons.items())[:_NAMED]]
    if len(reasons) > _NAMED:
        lines.append(f"  ... and {len(reasons) - _NAMED} more")
    return "\n".join(lines)
