"""AGPL: groups the proposals around peaks before training (SPEC 8)."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from lib.files import atomic_file
from lib.prm.peaks import Peaks
from lib.structures import Clusters, Regions

FORMAT_VERSION = 1
_REMEDY = "make the clusters with tools/assign_clusters.py"
_UNREADABLE = (zipfile.BadZipFile, zlib.error, KeyError, IndexError, ValueError, EOFError, OSError)


def agpl_clusters(
    regions: Regions,
    peaks: Peaks,
    mean_thresh: float = 0.7,
    iou_thresh: float = 0.5,
) -> Clusters:
    """Groups proposals around points, one cluster a point, and a background cluster.

    For the k-th point: all proposals that cover it are averaged, and the pixels above
    `mean_thresh` are a mask; proposals whose IoU with it is above `iou_thresh` join cluster k and
    leave the one they were in. Proposals that touch some point's mask and join no cluster are
    the background cluster, whose number follows that of the last point.

    A point that no proposal covers has no mask and its cluster stays empty. A proposal is
    constant on a region, so everything is computed with areas of regions, never with pixels.

    Args:
        regions: the proposals of the image. P may be 0.
        peaks: in the order in which they are to be taken: ascending response for peaks of the
            PRM (`select_peaks`), file order for annotated points. K may be 0.
    """
    height, width = regions.size
    region = regions.labels[peaks.y * height // peaks.size[0], peaks.x * width // peaks.size[1]]
    membership = regions.membership.astype(np.float64)  # (P, R); all sums below are exact
    covering = membership[:, region]  # (P, K)
    mean = membership.T @ covering / np.maximum(covering.sum(axis=0), 1)  # (R, K)
    area = regions.areas[:, None] * (mean > mean_thresh)  # (R, K), of the points' masks
    intersection = membership @ area  # (P, K)
    union = (membership @ regions.areas)[:, None] + area.sum(axis=0) - intersection
    iou = intersection / np.maximum(union, 1)

    number = np.zeros(regions.num_proposals, np.int64)
    column = np.full(regions.num_proposals, -1, np.int64)
    for k in range(len(peaks)):
        joining = iou[:, k] > iou_thresh
        number[joining] = k + 1
        column[joining] = peaks.class_idx[k] + 1
    background = (intersection > 0).any(axis=1) & (number == 0)
    number[background] = len(peaks) + 1
    column[background] = 0
    return Clusters(number=number, column=column)


class ClusterStore:
    """A folder of cluster files named like their images, one .npz each.

    A file holds `header` (int64: format version, P), `number` (P,), `column` (P,), `made_from` (a
    text) and `checksum` over the rest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, file_name: str) -> Path:
        """Where the clusters of image `file_name` are; sub-folders are kept.

        Raises:
            ValueError: `file_name` is absolute or leads out of the folder.
        """
        relative = PurePosixPath(file_name)
        if relative.is_absolute() or ".." in relative.parts or not relative.name:
            raise ValueError(
                f"image file name {file_name!r} must be relative to the image folder, without '..'"
            )
        return self.folder / relative.parent / f"{relative.stem}.npz"

    def has(self, file_name: str) -> bool:
        return self.path(file_name).is_file()

    def save(self, file_name: str, clusters: Clusters, made_from: str = "") -> None:
        """Writes the clusters of image `file_name`, replacing older ones.

        Args:
            made_from: says what they follow from, to tell later whether they are up to date.
        """
        content = {
            "header": np.array([FORMAT_VERSION, len(clusters.number)], np.int64),
            "number": np.asarray(clusters.number, np.int32),
            "column": np.asarray(clusters.column, np.int32),
            "made_from": np.array(made_from),
        }
        with atomic_file(self.path(file_name)) as file:
            np.savez_compressed(file, **content, checksum=_checksum(content))

    def load(self, file_name: str, num_proposals: int) -> Clusters:
        """Reads the clusters of image `file_name`.

        Args:
            num_proposals: how many proposals the image has.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated or damaged, of another format version, or made for
                another number of proposals.
        """
        path = self.path(file_name)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no clusters of image {file_name}; {_REMEDY}")
        content = _read(path)
        if len(content["number"]) != num_proposals:
            raise ValueError(
                f"{path}: clusters of {len(content['number'])} proposals, {file_name} has "
                f"{num_proposals}; {_REMEDY} after the proposals"
            )
        return Clusters(
            number=content["number"].astype(np.int64), column=content["column"].astype(np.int64)
        )

    def made_from(self, file_name: str) -> str | None:
        """What the clusters of an image were made from; None if there are none, or no readable."""
        try:
            return str(_read(self.path(file_name))["made_from"])
        except (FileNotFoundError, ValueError):
            return None


def _read(path: Path) -> dict[str, np.ndarray]:
    packed = path.read_bytes()
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
            version = int(archive["header"][0])
            content = {name: archive[name] for name in archive.files} if version == 1 else {}
    except _UNREADABLE as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); {_REMEDY}") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; {_REMEDY}"
        )
    checksum = content.pop("checksum", None)
    if checksum is None or not np.array_equal(checksum, _checksum(content)):
        raise ValueError(f"{path}: damaged, its checksum does not fit its content; {_REMEDY}")
    return content


def _checksum(content: dict[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in content.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
