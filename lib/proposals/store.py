"""Proposals on disk: one compressed file an image, whole or not there, read without pickle."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from lib.files import atomic_file
from lib.proposals.regions import proposals_from_regions
from lib.structures import Proposals, Regions

FORMAT_VERSION = 1
_REMEDY = "delete it and run tools/make_proposals.py (or import_proposals.py) again"
_UNREADABLE = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError)


class ProposalStore:
    """A folder of proposal files named like their images.

    A file is an .npz with `header` (int64: format version, P, R, H, W); the region labels in
    reading order as `run_labels` and `run_lengths`; `membership` (P, ceil(R / 8)) packed bits;
    and `checksum` over all of them. Boxes and 7x7 masks follow from these and are made when a
    file is read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, file_name: str) -> Path:
        """Where the proposals of image `file_name` are; sub-folders are kept.

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

    def save(self, file_name: str, proposals: Proposals | Regions) -> None:
        """Writes the proposals of image `file_name`, replacing older ones.

        Raises:
            ValueError: there are no proposals, or one of them is empty.
        """
        regions = proposals.regions if isinstance(proposals, Proposals) else proposals
        path = self.path(file_name)
        fault = _content_fault(regions)
        if fault:
            raise ValueError(f"{path}: not written: {fault}")
        shape = (*regions.membership.shape, *regions.size)
        run_labels, run_lengths = _runs(regions.labels.reshape(-1))
        content = {
            "header": np.array([FORMAT_VERSION, *shape], np.int64),
            "run_labels": run_labels,
            "run_lengths": run_lengths,
            "membership": np.packbits(regions.membership, axis=1),
        }
        with atomic_file(path) as file:
            np.savez_compressed(file, **content, checksum=_checksum(content))

    def load(self, file_name: str, size: tuple[int, int] | None = None) -> Proposals:
        """As `load_regions`, with what the network pools with."""
        return proposals_from_regions(self.load_regions(file_name, size))

    def load_regions(self, file_name: str, size: tuple[int, int] | None = None) -> Regions:
        """Reads the proposals of image `file_name`.

        Args:
            file_name: the image, as in the data set.
            size: (height, width) of the image; None does not check it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated or damaged, of another format version, made for an
                image of another size, holds no proposals, or an empty one.
        """
        path = self.path(file_name)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no proposals of image {file_name}; make them with tools/make_proposals.py"
            )
        content = _read(path)
        num_regions, height, width = (int(n) for n in content["header"][2:])
        if size is not None and (height, width) != tuple(size):
            raise ValueError(
                f"{path}: proposals are for an image of {height}x{width}, {file_name} is "
                f"{size[0]}x{size[1]} (height x width); {_REMEDY}"
            )
        run_labels, run_lengths = content["run_labels"], content["run_lengths"]
        areas = np.bincount(run_labels, weights=run_lengths, minlength=num_regions)
        membership = np.unpackbits(content["membership"], axis=1, count=num_regions)
        regions = Regions(
            labels=np.repeat(run_labels.astype(np.int32), run_lengths).reshape(height, width),
            membership=membership.view(bool),
            areas=areas.astype(np.int64),
        )
        fault = _content_fault(regions)
        if fault:
            raise ValueError(f"{path}: {fault}; {_REMEDY}")
        return regions


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal neighbours together: (K,) labels and (K,) lengths, in the smallest unsigned types."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    lengths = np.diff(starts, append=len(labels))
    run_labels = labels[starts]
    return (
        run_labels.astype(np.min_scalar_type(run_labels.max())),
        lengths.astype(np.min_scalar_type(lengths.max())),
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            version = int(archive["header"][0])
            content = {name: archive[name] for name in archive.files}
            checksum = content.pop("checksum", None)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: truncated or damaged ({error}); {_REMEDY}") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; {_REMEDY}"
        )
    if checksum is None or not np.array_equal(checksum, _checksum(content)):
        raise ValueError(f"{path}: damaged, its checksum does not fit its content; {_REMEDY}")
    return content


def _checksum(content: dict[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in content.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return np.frombuffer(digest.digest(), np.uint8)


def _content_fault(regions: Regions) -> str | None:
    if regions.num_proposals == 0:
        return "it holds zero proposals"
    empty = np.flatnonzero(~regions.membership.any(axis=1))
    if len(empty):
        return f"{len(empty)} of {regions.num_proposals} masks are empty, the first is {empty[0]}"
    return None
