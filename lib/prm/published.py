"""The published label_assign/*.pkl: cluster numbers of all proposals of a split in one pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib.parallel import for_each
from lib.prm.clusters import ClusterStore
from lib.proposals.store import ProposalStore
from lib.provenance import MadeFrom, file_fingerprint
from lib.restricted_pickle import find_image, load_by_image
from lib.structures import Clusters, ImageRecord


def clusters_from_matrix(matrix: np.ndarray, num_classes: int) -> Clusters:
    """Clusters of a published matrix.

    Args:
        matrix: (P, C+1), the cluster number of every proposal in the column of the cluster's
            class (column 0: background) and 0 elsewhere.

    Raises:
        ValueError: another shape, numbers that are negative or not whole, a proposal in two
            clusters, or a cluster of two classes. The caller adds file and image.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[1] != num_classes + 1:
        raise ValueError(
            f"the matrix has shape {matrix.shape}, expected (proposals, {num_classes + 1}) for "
            f"{num_classes} classes and the background"
        )
    if matrix.dtype.kind not in "biuf" or not (matrix == np.floor(matrix)).all():
        raise ValueError("the matrix holds values that are no whole numbers")
    if (matrix < 0).any():
        raise ValueError("the matrix holds negative numbers")
    twice = np.flatnonzero((matrix > 0).sum(axis=1) > 1)
    if len(twice):
        raise ValueError(f"proposal {twice[0]} is in more than one cluster")
    number = matrix.sum(axis=1).astype(np.int64)
    column = np.where(number > 0, matrix.argmax(axis=1), -1).astype(np.int64)
    for cluster in np.unique(number[number > 0]):
        columns = np.unique(column[number == cluster])
        if len(columns) > 1:
            raise ValueError(f"cluster {cluster} is in the columns {columns.tolist()} at once")
    return Clusters(number=number, column=column)


def import_label_assign(
    path: str | Path,
    images: Sequence[ImageRecord],
    num_classes: int,
    proposals: ProposalStore,
    clusters: ClusterStore,
    samples: Mapping[str, MadeFrom],
    jobs: int = -1,
) -> tuple[int, dict[str, str]]:
    """Stores the published clusters of all images; an image is found by its id, not its position.

    Args:
        samples: see `lib.prm.assign.samples_made_from`.

    Returns:
        (number of matrices for images that are not in the data set, reasons by file name of images
        that failed: not in the file, without proposals, or with another number of them).

    Raises:
        FileNotFoundError, ValueError: the file cannot be used, see `load_by_image`.
    """
    by_image = load_by_image(path, "mat")
    imported = {"imported": file_fingerprint(Path(path)), "file": Path(path).name}
    found = [find_image(by_image, i.known_as, i.file_name) for i in images]
    tasks = (
        (i.file_name, (i.file_name, matrix, {**samples[i.file_name], **imported}))
        for i, matrix in zip(images, found, strict=True)
    )
    work = partial(
        _import_image,
        path=str(path),
        num_classes=num_classes,
        proposals=proposals,
        clusters=clusters,
    )
    _, failures = for_each(work, tasks, len(images), jobs, "importing")
    return len(by_image) - sum(matrix is not None for matrix in found), failures


def _import_image(
    file_name: str,
    matrix: tuple[Any, ...] | None,
    made_from: MadeFrom,
    path: str,
    num_classes: int,
    proposals: ProposalStore,
    clusters: ClusterStore,
) -> None:
    if matrix is None:
        raise ValueError(f"not among the indexes of {path}")
    try:
        found = clusters_from_matrix(matrix[0], num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: image {file_name}: {error}") from None
    num_proposals = proposals.load(file_name).regions.num_proposals
    if len(found.number) != num_proposals:
        raise ValueError(
            f"{path}: image {file_name} has a matrix of {len(found.number)} proposals, "
            f"{proposals.path(file_name)} has {num_proposals}; import the proposals that the file "
            "was made from, all of them and in their order"
        )
    clusters.save(file_name, found, made_from)
