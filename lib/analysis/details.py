"""The steps of the method on an image as layers of the gallery."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from lib.analysis.inspection import Inspection, inspect, open_inspector
from lib.analysis.mining import best_first
from lib.data.catalog import Dataset
from lib.data.coco import CocoImages
from lib.data.loader import CimDataset
from lib.engine.checkpoint import list_checkpoints
from lib.engine.runs import checkpoint_folder
from lib.prm.assign import samples_made_from
from lib.prm.clusters import ClusterStore
from lib.proposals.store import ProposalStore
from lib.visualization.draw import color_of
from lib.visualization.gallery import Layer, Picture
from lib.visualization.outlines import mask_outlines, tolerance_for

logger = logging.getLogger(__name__)

_MINED = "mined_"

Items = list[list[Any]]
"""As in chunks: [class index, number, hit, outlines]; of `prm` [class index, image, peaks]."""


def inspect_worst(
    pictures: Sequence[Picture],
    count: int,
    run: Path | None,
    dataset: Dataset,
    coco: CocoImages,
    prm_file: Path | None = None,
    device: str = "cpu",
) -> list[tuple[int, dict[str, Items]]]:
    """Details of the pictures of lowest AP.

    Without a run, or before its first checkpoint, these are proposals and stored clusters. Images
    without stored proposals have no details; those that fail are left out, with a warning.

    Args:
        pictures: the first images of the data set, in its order.
        count: maximum number of pictures with details.
        prm_file: replaces the PRM of the data set, or of the training data.

    Returns:
        (number of the picture, its layers)

    Raises:
        ValueError: the stored proposals were made from other images.
    """
    proposals = ProposalStore(dataset.proposals)
    worst = sorted(  # those without an AP last
        range(len(pictures)), key=lambda n: (pictures[n].ap is None, pictures[n].ap or 0.0, n)
    )
    numbers = [n for n in worst if proposals.has(coco.images[n].file_name)][:count]
    samples_made_from(dataset, [coco.images[n] for n in numbers], with_missing=True)  # they fit?
    inspector = None
    if numbers and run is not None and list_checkpoints(checkpoint_folder(run)):
        if prm_file is None and dataset.prm.is_file():
            prm_file = dataset.prm
        inspector = open_inspector(run, dataset.root, coco, prm_file, device)
    data, clusters = CimDataset(coco, dataset.images, proposals), ClusterStore(dataset.clusters)
    made = []
    for number in tqdm(numbers, desc="details", unit="image", disable=not numbers):
        name = coco.images[number].file_name
        try:
            read = data.read(number)
            if clusters.has(name):
                read = replace(read, clusters=clusters.load(name, len(read.proposals)))
            made.append((number, details_of(inspect(read, inspector))))
        except (ValueError, OSError) as error:
            logger.warning("no details of %s: %s", name, error)
    return made


def detail_layers(details: Iterable[tuple[int, Mapping[str, Items]]]) -> dict[str, Layer]:
    """The layers of these details, in the order of the gallery's list."""
    names = {name for _, layers in details for name in layers}
    layers = {
        name: Layer(f"Mined for stage {name.removeprefix(_MINED)}", "mined instance", detail=True)
        for name in sorted(names)
        if name.startswith(_MINED)
    }
    layers["clusters"] = Layer("Clusters", "cluster", detail=True)
    layers["prm"] = Layer("Peaks and responses", "response map", detail=True)
    layers["proposals"] = Layer("Proposals", "proposal", detail=True)
    return {name: layer for name, layer in layers.items() if name in names}


def details_of(seen: Inspection) -> dict[str, Items]:
    """The layers of one image as plain JSON values."""
    regions = seen.proposals.regions
    tolerance = tolerance_for(regions.size)
    outlines = [mask_outlines(inside[regions.labels], tolerance) for inside in regions.membership]
    layers = {"proposals": [[None, None, None, lines] for lines in outlines]}
    if seen.clusters is not None:
        layers["clusters"] = _clusters(seen)
    if seen.responses is not None:
        layers["prm"] = _response_maps(seen)
    if seen.instances is not None:
        for stage in range(len(seen.instances.weight)):
            mined = zip(*map(np.ndarray.tolist, best_first(seen.instances, stage)), strict=True)
            layers[f"{_MINED}{stage + 1}"] = [
                [class_idx, round(weight, 4), None, outlines[p]] for p, class_idx, weight in mined
            ]
    return layers


def _clusters(seen: Inspection) -> Items:
    """Pixels in at least half of a cluster's proposals, largest cluster first."""
    regions = seen.proposals.regions
    number, column = np.asarray(seen.clusters.number), np.asarray(seen.clusters.column)
    items = []
    for k in np.unique(number[column > 0]).tolist():
        members = number == k
        core = regions.membership[members].mean(axis=0)[regions.labels] >= 0.5
        class_idx = int(column[members][0]) - 1
        lines = mask_outlines(core, tolerance_for(regions.size))
        items.append([class_idx, int(members.sum()), None, lines])
    return sorted(items, key=lambda item: -item[1])


def _response_maps(seen: Inspection) -> Items:
    """The response map of every class of the image, in the class's colour, with its peaks."""
    height, width = seen.record.size
    items = []
    for c in np.flatnonzero(seen.record.image_labels).tolist():
        response = np.maximum(seen.responses[c], 0)
        share = response / max(float(response.max()), 1e-12)
        picture = np.empty((*share.shape, 4), np.uint8)
        picture[..., :3] = color_of(c)[::-1]  # OpenCV writes BGR
        picture[..., 3] = np.round(share * 200)
        done, encoded = cv2.imencode(".png", picture)
        assert done
        source = "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
        own = seen.peaks.take(np.flatnonzero(seen.peaks.class_idx == c))
        x, y = (own.x + 0.5) * width / own.size[1], (own.y + 0.5) * height / own.size[0]
        items.append([c, source, np.round(np.stack([x, y], axis=1), 1).tolist()])
    return items
