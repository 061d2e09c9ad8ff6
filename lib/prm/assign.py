"""Clusters of all images of a data set: from peaks or points to the cluster store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.config import PRMConfig
from lib.data.catalog import Dataset
from lib.data.coco import ImageRecord
from lib.data.points import points_path, read_points
from lib.parallel import for_each
from lib.prm.clusters import ClusterStore, agpl_clusters
from lib.prm.foreground import (
    SeenImage,
    fit_foreground,
    foreground_clusters,
    num_images_to_learn_from,
    see_images,
)
from lib.prm.images import SquareImages
from lib.prm.network import PeakResponseNet, prm_fingerprint
from lib.prm.peaks import Peaks, find_peaks, peaks_from_points, select_peaks
from lib.proposals.store import ProposalStore
from lib.provenance import MadeFrom, file_fingerprint, fingerprint
from lib.structures import Clusters, Regions

Found = Peaks | SeenImage
"""Evidence for the clusters of an image, beside its proposals."""
Rule = Callable[[Regions, Found], Clusters]


@dataclass(frozen=True)
class Outcome:
    """Counts of the clusters made for one image."""

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


def foreground_rule(
    net: PeakResponseNet,
    labelled: Sequence[ImageRecord],
    records: Sequence[ImageRecord],
    folder: str | Path,
    proposals: ProposalStore,
) -> tuple[Rule, Iterator[SeenImage | Exception]]:
    """Learns the foreground of a data set's classes.

    Args:
        net: in evaluation mode, on the device to use.
        labelled: the images with labels; as many as fit in memory are learned from.
        records: the images to make clusters for.
        folder: where the images lie.

    Returns:
        The rule, and what the PRM sees in every image of `records` in order, or why it cannot be
        read.

    Raises:
        ValueError, FileNotFoundError: none of the images can be read, or none has proposals.
    """
    usable = [record for record in labelled if proposals.has(record.file_name)]
    order = np.random.default_rng(0).permutation(len(usable))
    drawn = [usable[n] for n in order[: num_images_to_learn_from(net)]]
    found = dict(zip((r.file_name for r in drawn), see_images(net, drawn, folder), strict=True))
    seen = {name: image for name, image in found.items() if isinstance(image, SeenImage)}
    if not seen:
        raise next(iter(found.values()), None) or FileNotFoundError(
            f"{proposals.folder}: no image has proposals; {proposals.remedy}"
        )
    names = list(seen)
    foreground = fit_foreground(
        list(seen.values()), lambda n: proposals.load_regions(names[n]), net.num_classes
    )

    def evidence() -> Iterator[SeenImage | Exception]:
        others = see_images(net, [r for r in records if r.file_name not in seen], folder)
        for record in records:
            yield seen[record.file_name] if record.file_name in seen else next(others)

    return partial(foreground_clusters, foreground=foreground), evidence()


def samples_made_from(
    dataset: Dataset, records: Sequence[ImageRecord], with_missing: bool = False
) -> dict[str, MadeFrom]:
    """The part of the clusters' records that the PRM does not decide, by file name.

    Args:
        with_missing: missing images or proposals are None instead of an error.

    Raises:
        FileNotFoundError: images have no proposals.
        ValueError: proposals were made from other images.
    """
    names = [record.file_name for record in records]
    content = dataset.fingerprints(names)
    store = ProposalStore(dataset.proposals)
    there = store.stored(names, dataset.memory) if with_missing else names
    fitting = {name: {"image": content.get(name)} for name in there}
    proposals = store.checked(fitting, dataset.memory)
    samples = {}
    for record in records:
        found = proposals.get(record.file_name)
        samples[record.file_name] = {
            "image": content.get(record.file_name),
            "image_labels": np.flatnonzero(record.image_labels).tolist(),
            "proposals": found.fingerprint if found else None,
            **({"masks_seen": found.masks_seen} if found and found.masks_seen else {}),
        }
    return samples


def peaks_made_from(prm: Path, settings: PRMConfig, samples: Sequence[MadeFrom]) -> dict[str, Any]:
    """The part of the clusters' records that all images share.

    Args:
        samples: of the images, see `samples_made_from`.
    """
    taken = {"image_size", "upsample", "smooth", "peak_thresh", "peak_thresh_relative", "clusters"}
    made_from = {
        "prm": prm_fingerprint(prm),
        "peaks": settings.model_dump(mode="json", include=taken),
    }
    if settings.clusters == "foreground":  # which is learned from all images
        made_from["learned_from"] = fingerprint(samples)
    return made_from


def points_made_from(folder: Path, samples: Mapping[str, MadeFrom]) -> dict[str, MadeFrom]:
    """Records of clusters around annotated points.

    Args:
        folder: of the points.
        samples: see `samples_made_from`.
    """
    files = {name: points_path(folder, name) for name in samples}
    return {
        name: {
            "points": file_fingerprint(file) if file.is_file() else None,
            "proposals": samples[name]["proposals"],
        }
        for name, file in files.items()
    }


def assign_clusters(
    records: Sequence[ImageRecord],
    evidence: Iterator[Found | Exception],
    made_from: Mapping[str, MadeFrom],
    proposals: ProposalStore,
    clusters: ClusterStore,
    jobs: int = 1,
    rule: Rule = agpl_clusters,
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Makes and stores the clusters of the images; one that fails does not stop the others.

    Args:
        evidence: input of the rule for every image in order, or why there is none.
        made_from: records of the clusters, by file name.
        jobs: processes; -1 is one per core.
        rule: groups the proposals of an image.

    Returns:
        (outcome by file name, reason by file name of those that failed)
    """
    if not records:
        return {}, {}
    tasks = (
        (record.file_name, (record, found, made_from[record.file_name], proposals, clusters, rule))
        for record, found in zip(records, evidence, strict=True)
    )
    return for_each(_assign, tasks, total=len(records), jobs=jobs, title="clusters")


def _assign(
    record: ImageRecord,
    found: Found | Exception,
    made_from: MadeFrom,
    proposals: ProposalStore,
    clusters: ClusterStore,
    rule: Rule,
) -> Outcome:
    if isinstance(found, Exception):
        raise found
    grouped = rule(proposals.load_regions(record.file_name, record.size), found)
    clusters.save(record.file_name, grouped, made_from)
    peaks = found.peaks if isinstance(found, SeenImage) else found
    return Outcome(
        clusters=len(np.unique(grouped.number[grouped.column > 0])),
        peaks=len(peaks),
        fallback=bool(peaks.fallback.any()),
    )
