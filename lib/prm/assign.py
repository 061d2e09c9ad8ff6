"""Clusters of all images of a data set: from peaks or points to the cluster store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.data.coco import ImageRecord
from lib.data.points import points_path, read_points
from lib.parallel import for_each
from lib.prm.clusters import ClusterStore, agpl_clusters
from lib.prm.images import SquareImages
from lib.prm.network import PeakResponseNet
from lib.prm.peaks import Peaks, find_peaks, peaks_from_points, select_peaks
from lib.proposals.store import ProposalStore


@dataclass(frozen=True)
class Outcome:
    """What became of the clusters of one image."""

    clusters: int
    """Foreground clusters that hold a proposal."""
    peaks: int
    fallback: bool
    """Some class of the image had no peak above the threshold."""


def prm_peaks(
    net: PeakResponseNet,
    records: Sequence[ImageRecord],
    folder: str | Path,
    batch_size: int = 16,
) -> Iterator[Peaks | Exception]:
    """Peaks of every image in order (see `select_peaks`), or why it cannot be read.

    Args:
        net: in evaluation mode, on the device to use.
        folder: where the images lie.
    """
    images = SquareImages(records, folder, net.settings.image_size, memory_limit=0)
    device = next(net.parameters()).device
    for start in range(0, len(records), batch_size):
        found: dict[int, Peaks | Exception] = {}
        read = {}
        for index in range(start, min(start + batch_size, len(records))):
            try:
                read[index] = images.batch([index], ["none"])
            except (ValueError, OSError) as error:
                found[index] = error
        if read:
            with torch.no_grad():
                responses = net(torch.cat(list(read.values())).to(device))
            for index, response in zip(read, responses, strict=True):
                labels = records[index].image_labels
                found[index] = select_peaks(find_peaks(response), labels, net.settings)
        yield from (found[index] for index in sorted(found))


def point_peaks(
    records: Sequence[ImageRecord], folder: str | Path, num_classes: int
) -> Iterator[Peaks | Exception]:
    """Annotated points of every image in order (CIM-p), or why they cannot be read."""
    for record in records:
        try:
            points = read_points(points_path(folder, record.file_name), num_classes, record.size)
            yield peaks_from_points(points, record.size)
        except (ValueError, OSError) as error:
            yield error


def made_from(
    source: str,
    record: ImageRecord,
    proposals: ProposalStore,
    points_folder: str | Path | None = None,
) -> str:
    """What the clusters of an image follow from, to tell whether stored ones are up to date.

    Args:
        source: what is the same for all images: the PRM and its thresholds.
        points_folder: where the annotated points lie, if these take the place of peaks.
    """
    content = hashlib.blake2b(source.encode(), digest_size=16)
    content.update(record.image_labels.tobytes())
    files = [proposals.path(record.file_name)]
    if points_folder is not None:
        files.append(points_path(points_folder, record.file_name))
    for path in files:
        content.update(path.read_bytes() if path.is_file() else b"missing")
    return content.hexdigest()


def assign_clusters(
    records: Sequence[ImageRecord],
    peaks: Iterator[Peaks | Exception],
    sources: Sequence[str],
    proposals: ProposalStore,
    clusters: ClusterStore,
    jobs: int = 1,
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Makes and stores the clusters of the images; one that fails does not stop the others.

    Args:
        peaks: of every image in order, or why there are none.
        sources: `made_from` of every image.
        jobs: processes; -1 is one per core.

    Returns:
        (outcome by file name, reason by file name of those that failed)
    """
    if not records:
        return {}, {}
    tasks = (
        (record.file_name, (record, found, source, proposals, clusters))
        for record, found, source in zip(records, peaks, sources, strict=True)
    )
    return for_each(_assign, tasks, total=len(records), jobs=jobs, title="clusters")


def _assign(
    record: ImageRecord,
    peaks: Peaks | Exception,
    source: str,
    proposals: ProposalStore,
    clusters: ClusterStore,
) -> Outcome:
    if isinstance(peaks, Exception):
        raise peaks
    regions = proposals.load(record.file_name, record.size).regions
    found = agpl_clusters(regions, peaks)
    clusters.save(record.file_name, found, source)
    return Outcome(
        clusters=len(np.unique(found.number[found.column > 0])),
        peaks=len(peaks),
        fallback=bool(peaks.fallback.any()),
    )
