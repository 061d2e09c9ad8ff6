"""Moves the masks of a reader into the store: checks them, leaves some out and counts these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.files import first_few
from lib.parallel import for_each
from lib.proposals.readers import Reader
from lib.proposals.regions import encode, select
from lib.proposals.store import ProposalStore
from lib.provenance import MadeFrom, Memory, file_fingerprint, fingerprint
from lib.structures import ImageRecord, Regions


class Imported(NamedTuple):
    """Counts of the masks of one image, or of all."""

    stored: int = 0
    empty: int = 0
    """Masks left out because no pixel is in them."""
    duplicates: int = 0
    """Masks left out because an earlier one has the same pixels."""


def import_all(
    reader: Reader,
    store: ProposalStore,
    images: Sequence[ImageRecord],
    drop_empty: bool = False,
    drop_duplicates: bool = False,
    jobs: int = -1,
    made_from: Mapping[str, MadeFrom] | None = None,
) -> tuple[Imported, dict[str, str]]:
    """Reads the proposals of all images and stores them, on several cores.

    Args:
        made_from: their records, by file name.

    Returns:
        (the sum over the images, why images failed by file name).
    """
    failures: dict[str, str] = {}
    taken: dict[Path, str] = {}
    tasks = []
    for image in images:
        name = image.file_name
        try:
            found = reader.find(image.known_as, name)
            if isinstance(found, Path) and (same := taken.setdefault(found, name)) != name:
                raise ValueError(
                    f"{found}: stands for {same} as well as for {name}; name the files with the "
                    "sub-folders that the images have"
                )
        except (OSError, ValueError) as error:
            failures[name] = str(error)
            continue
        record = (made_from or {}).get(name)
        work = (type(reader), found, store, image, record, drop_empty, drop_duplicates)
        tasks.append((name, work))
    results, failed = for_each(_import_one, tasks, len(tasks), jobs, "importing")
    return Imported(*map(sum, zip(*results.values(), strict=True))), failures | failed


def imports_made_from(
    reader: Reader,
    images: Sequence[ImageRecord],
    content: Mapping[str, str],
    memory: Memory,
    options: Mapping[str, bool],
) -> dict[str, MadeFrom]:
    """Records of imported proposals, by file name; images that the source lacks are left out.

    Args:
        content: fingerprints of the images, by file name, where they are known.
        options: those of `import_all` that matter.
    """
    found = {}
    for image in images:
        with suppress(OSError, ValueError):
            found[image.file_name] = reader.find(image.known_as, image.file_name)
    sources = _fingerprints(reader.source, found, memory)
    return {
        name: {"image": content.get(name), "imported": source, "options": dict(options)}
        for name, source in sources.items()
    }


def _fingerprints(source: Path, found: Mapping[str, Any], memory: Memory) -> dict[str, str]:
    """Fingerprint of every image's file or folder, or else of the one file of all images."""
    if source.is_file():
        return dict.fromkeys(found, file_fingerprint(source))
    places = {name: str(place.relative_to(source)) for name, place in found.items()}
    files = [place for place in places.values() if not (source / place).is_dir()]
    known = memory.read(source, files)
    return {n: known.get(place) or _of_folder(source / place) for n, place in places.items()}


def _of_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint([(str(path.relative_to(folder)), file_fingerprint(path)) for path in files])


def _import_one(
    reader: type[Reader],
    found: Any,
    store: ProposalStore,
    image: ImageRecord,
    made_from: MadeFrom | None,
    drop_empty: bool,
    drop_duplicates: bool,
) -> Imported:
    where = str(found) if isinstance(found, Path) else found[0]
    size = image.size
    masks = reader.read(found, size) if reader.needs_size else reader.read(found)
    if len(masks) == 0:
        raise ValueError(f"{where}: {reader.content} has no masks; {reader.remedy}")
    if masks.shape[1:] != size:
        raise ValueError(
            f"{where}: {reader.content} has {masks.shape[1]}x{masks.shape[2]} masks, the image is "
            f"{size[0]}x{size[1]} (height x width); {reader.remedy}"
        )
    regions = encode(masks)
    empty, duplicates = empty_masks(regions), duplicate_masks(regions)
    if len(empty) and not drop_empty:
        some = first_few([str(number) for number in empty])
        noun, verb = ("mask", "is") if len(empty) == 1 else ("masks", "are")
        raise ValueError(
            f"{where}: {noun} {some} of {len(masks)} (counted from 0) {verb} empty; import with "
            "--drop-empty to leave empty masks out (published files of labels by proposal, such "
            "as label_assign, then no longer fit)"
        )
    dropped = np.union1d(empty, duplicates if drop_duplicates else empty)
    if len(dropped) == len(masks):
        raise ValueError(f"{where}: all of its {len(masks)} masks are empty; {reader.remedy}")
    if len(dropped):
        regions = select(regions, np.setdiff1d(np.arange(len(masks)), dropped))
    store.save(image.file_name, regions, made_from)
    return Imported(len(masks) - len(dropped), len(empty), len(dropped) - len(empty))


def empty_masks(regions: Regions) -> np.ndarray:
    """(K,) int64, ascending: the proposals without a pixel."""
    return np.flatnonzero(~regions.membership.any(axis=1))


def duplicate_masks(regions: Regions) -> np.ndarray:
    """(K,) int64, ascending: the proposals with exactly the pixels of an earlier one."""
    if regions.num_proposals == 0:
        return np.zeros(0, np.int64)
    _, first = np.unique(np.packbits(regions.membership, axis=1), axis=0, return_index=True)
    return np.setdiff1d(np.arange(regions.num_proposals), first)
