"""Proposals on disk: one compressed file an image, whole or not there, read without pickle."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple

import numpy as np

from lib.files import atomic_file, first_few
from lib.proposals.regions import proposals_from_regions
from lib.provenance import MadeFrom, Memory, changes, summary
from lib.restricted_pickle import DAMAGED_ARRAY
from lib.structures import Proposals, Regions

logger = logging.getLogger(__name__)

_UNREADABLE = (zipfile.BadZipFile, zlib.error, KeyError, IndexError, *DAMAGED_ARRAY)
_MADE_FROM = "made_from"
_IMPORTED = "imported"
"""The key of a record that tells imported files from those that can be made again."""
_CHECKSUM = "checksum"


class Stored(NamedTuple):
    """Facts about an image's file known without reading its content."""

    fingerprint: str
    """Of the content, without the record."""
    made_from: MadeFrom | None
    """None: an earlier version wrote the file, which did not note it."""

    @property
    def masks_seen(self) -> str | None:
        """Says which network made it that was trained with masks; None if none did."""
        return ((self.made_from or {}).get("settings") or {}).get("masks_seen")


class ImageStore:
    """A folder of one .npz per image, named like the images: arrays, a record and a checksum.

    A file holds `header` (int64, the format version first), the arrays of its kind, `made_from`
    (JSON, see lib/provenance.py) and `checksum` over all but the record.
    """

    kind: ClassVar[str]
    """Name of the stored things, for messages."""
    version: ClassVar[int]
    remedy: ClassVar[str]
    """Remedy for a file that cannot be used."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, file_name: str) -> Path:
        """The file of image `file_name`; sub-folders are kept.

        Raises:
            ValueError: `file_name` is absolute or leads out of the folder.
        """
        return self.folder / _relative(file_name)

    def has(self, file_name: str) -> bool:
        return self.path(file_name).is_file()

    def stored(self, file_names: Sequence[str], memory: Memory) -> dict[str, Stored]:
        """Fingerprints and records by file name; images without a readable file are left out."""
        of_file = {_relative(name): name for name in file_names}
        found = memory.read(self.folder, list(of_file), _read_stored)
        return {of_file[file]: Stored(*entry) for file, entry in found.items() if entry}

    def fingerprints(self, fitting: Mapping[str, MadeFrom], memory: Memory) -> dict[str, str]:
        """Fingerprints by file name; arguments and errors as for `checked`."""
        found = self.checked(fitting, memory)
        return {name: entry.fingerprint for name, entry in found.items()}

    def checked(self, fitting: Mapping[str, MadeFrom], memory: Memory) -> dict[str, Stored]:
        """`stored`, after a look whether all were made from what is there now.

        Files that do not say what they were made from are accepted with a warning.

        Args:
            fitting: by file name, what the record must say, of what it says at all; None of an
                image that is not there.

        Raises:
            FileNotFoundError: images have no file.
            ValueError: files were made from something else, or cannot be read.
        """
        stored = self.stored(list(fitting), memory)
        absent = [name for name in fitting if name not in stored]
        missing = [name for name in absent if not self.has(name)]
        for names, fault, error in (
            (missing, "are missing", FileNotFoundError),
            (absent, "are damaged", ValueError),
        ):
            if names:
                raise error(self._told(names, len(fitting), f"{fault}: ", self.remedy))
        self._check_fitting(fitting, stored, "were made from", self.remedy)
        return stored

    def out_of_date(
        self, wanted: Mapping[str, MadeFrom], memory: Memory, keep_imported: bool = True
    ) -> list[str]:
        """File names of the images that have no file, or one made from something else.

        Says what has changed.

        Args:
            wanted: the records that new files would get, by file name.
            keep_imported: imported files, and those that do not say what they were made from, are
                up to date: nothing here could make them again.

        Raises:
            ValueError: files that are to be kept were imported for something else.
        """
        stored = self.stored(list(wanted), memory)
        todo, told, kept = [], [], {}
        for name, record in wanted.items():
            if name not in stored:
                todo.append(name)
                continue
            before = stored[name].made_from
            if keep_imported and (before is None or _IMPORTED in before):
                kept[name] = stored[name]
            elif different := changes(before, record):
                todo.append(name)
                told.append(different)
        self._check_kept(wanted, kept)
        if imported := [name for name, entry in kept.items() if entry.made_from]:
            logger.info(
                "%s: the imported %s of %d images are kept (--overwrite makes them anew)",
                self.folder,
                self.kind,
                len(imported),
            )
        if told:
            logger.info(
                "%s: %s of %d of %d images are out of date and made anew: %s",
                self.folder,
                self.kind,
                len(told),
                len(wanted),
                summary(told),
            )
        return todo

    def imported(self, fitting: Mapping[str, MadeFrom], memory: Memory) -> set[str]:
        """File names of the images with imported files.

        Raises:
            ValueError: files were imported for something else than what is there.
        """
        found = self.stored(list(fitting), memory)
        kept = {n: entry for n, entry in found.items() if _IMPORTED in (entry.made_from or {})}
        self._check_kept(fitting, kept)
        return set(kept)

    def _check_kept(self, fitting: Mapping[str, MadeFrom], kept: Mapping[str, Stored]) -> None:
        remedy = "import them again, or make them anew with --overwrite"
        self._check_fitting(fitting, kept, "were imported for", remedy)

    def _check_fitting(
        self,
        fitting: Mapping[str, MadeFrom],
        stored: Mapping[str, Stored],
        verb: str,
        remedy: str,
    ) -> None:
        """Raises ValueError where records say something else; warns where they say nothing."""
        unsaid = [name for name, entry in stored.items() if entry.made_from is None]
        if unsaid:
            fault = "do not say what they were made from (an earlier version wrote them): "
            told = self._told(unsaid, len(stored), fault)
            remedy = f"{self.remedy} and --overwrite"
            logger.warning("%s they are taken as they are; if in doubt, %s", told, remedy)
        wrong: dict[str, list[str]] = {}
        for name, entry in stored.items():
            for key, value in fitting[name].items():
                said = (entry.made_from or {}).get(key)
                if None not in (value, said) and said != value:
                    wrong.setdefault(key, []).append(name)
        for key, names in wrong.items():
            fault = f"{verb} other {_WORDS.get(key, key)}: "
            raise ValueError(self._told(names, len(stored), fault, remedy))

    def _told(self, names: list[str], total: int, fault: str, remedy: str = "") -> str:
        which = f"{self.folder}: {self.kind} of {len(names)} of {total} images"
        return f"{which} {fault}{first_few(names, 5)}; {remedy}"

    def _write(
        self, file_name: str, content: dict[str, np.ndarray], made_from: MadeFrom | None
    ) -> None:
        packed = {**content, _CHECKSUM: _checksum(content)}
        if made_from is not None:
            packed[_MADE_FROM] = np.array(json.dumps(made_from))
        with atomic_file(self.path(file_name)) as file:
            np.savez_compressed(file, **packed)

    def _read(self, file_name: str) -> dict[str, np.ndarray]:
        """Raises FileNotFoundError or ValueError: missing, damaged or of another version."""
        path = self.path(file_name)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no {self.kind} of image {file_name}; {self.remedy}")
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                version = int(archive["header"][0])
                content = {name: archive[name] for name in archive.files}
                checksum = content.pop(_CHECKSUM, None)
        except _UNREADABLE as error:
            raise ValueError(f"{path}: truncated or damaged ({error}); {self.remedy}") from None
        if version != self.version:
            raise ValueError(
                f"{path}: format version {version}, this program reads {self.version}; "
                f"{self.remedy}"
            )
        if checksum is None or not np.array_equal(checksum, _checksum(content)):
            raise ValueError(
                f"{path}: damaged, its checksum does not fit its content; {self.remedy}"
            )
        return content


_WORDS = {"image": "images", "image_labels": "image labels", "prm": "PRM weights"}
"""Keys of records in the words of messages, where they are not the same."""


class ProposalStore(ImageStore):
    """A folder of proposal files named like their images.

    The arrays of a file are `header` (int64: format version, P, R, H, W); the region labels in
    reading order as `run_labels` and `run_lengths`; and `membership` (P, ceil(R / 8)) packed bits.
    Boxes and 7x7 masks follow from these and are made when a file is read.
    """

    kind = "proposals"
    version = 1
    remedy = "make them with tools/proposals.py make (or tools/proposals.py import)"

    def save(
        self, file_name: str, proposals: Proposals | Regions, made_from: MadeFrom | None = None
    ) -> None:
        """Writes the proposals of image `file_name`, replacing older ones.

        Raises:
            ValueError: there are no proposals, or one of them is empty.
        """
        regions = proposals.regions if isinstance(proposals, Proposals) else proposals
        fault = _content_fault(regions)
        if fault:
            raise ValueError(f"{self.path(file_name)}: not written: {fault}")
        shape = (*regions.membership.shape, *regions.size)
        run_labels, run_lengths = _runs(regions.labels.reshape(-1))
        content = {
            "header": np.array([self.version, *shape], np.int64),
            "run_labels": run_labels,
            "run_lengths": run_lengths,
            "membership": np.packbits(regions.membership, axis=1),
        }
        self._write(file_name, content, made_from)

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
        content, path = self._read(file_name), self.path(file_name)
        num_regions, height, width = (int(n) for n in content["header"][2:])
        if size is not None and (height, width) != tuple(size):
            raise ValueError(
                f"{path}: proposals are for an image of {height}x{width}, {file_name} is "
                f"{size[0]}x{size[1]} (height x width); {self.remedy}"
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
            raise ValueError(f"{path}: {fault}; {self.remedy}")
        return regions


def _relative(file_name: str) -> str:
    relative = PurePosixPath(file_name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ValueError(
            f"image file name {file_name!r} must be relative to the image folder, without '..'"
        )
    return str(relative.parent / f"{relative.stem}.npz")


def _read_stored(path: Path) -> tuple[str, MadeFrom | None] | None:
    """Reads the content of `Stored`; None if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            text = str(archive[_MADE_FROM]) if _MADE_FROM in archive.files else "null"
            checksum = archive[_CHECKSUM].tobytes().hex()
    except _UNREADABLE:
        return None
    if text.startswith("imported "):  # clusters of an earlier version
        return checksum, {"imported": text}
    try:
        return checksum, json.loads(text)
    except ValueError:
        return checksum, {}


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal neighbours together: (K,) labels and (K,) lengths, in the smallest unsigned types."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    lengths = np.diff(starts, append=len(labels))
    run_labels = labels[starts]
    return (
        run_labels.astype(np.min_scalar_type(run_labels.max())),
        lengths.astype(np.min_scalar_type(lengths.max())),
    )


def _checksum(content: Mapping[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in content.items():
        if name != _MADE_FROM:
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
