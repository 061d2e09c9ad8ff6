"""The one answer to "is this still made from that?".

Every result carries a record, `made_from`: names and plain JSON values of all that it depends on.
Settings stand in it as they are, files and data by the fingerprint of their content, so that
neither time, place nor machine counts. A result is up to date while its record equals the one that
would be written now.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lib.files import find_file, read_json, write_json

logger = logging.getLogger(__name__)

MadeFrom = Mapping[str, Any]
"""Inputs that a result was made from; may be nested."""

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_MASKS_SEEN = "masks_seen"
"""The key of records that names networks trained with masks."""
_READERS = 8
"""Threads that read files; more do not help a disk."""
_NAMED = 4
"""Maximum number of changes listed in a message."""
_RECENT = 50_000_000
"""Nanoseconds in which a file may change again without a change of its times."""


def fingerprint(*parts: Any) -> str:
    """Fingerprint of bytes, text, numbers, arrays, tensors, and lists and mappings of them.

    The order of a mapping does not count, that of a list does; tuples and lists are the same.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, parts)
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """Fingerprint of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def beside(result: Path) -> Path:
    """The file with the record of a result that cannot hold it itself."""
    return result.with_name(f"{result.stem}.made_from.json")


def masks_seen(*records: MadeFrom | None) -> dict[str, list[str]]:
    """Networks trained with masks that had a part in what has these records.

    Returns:
        `{"masks_seen": [...]}`, to be added to the record of what is made from it; {} if none had.
    """
    told: set[str] = set()
    for record in records:
        seen = (record or {}).get(_MASKS_SEEN, ())
        told.update([seen] if isinstance(seen, str) else seen)
    return {_MASKS_SEEN: sorted(told)} if told else {}


def changes(before: MadeFrom | None, now: MadeFrom) -> list[str]:
    """Lists the differences between two records in words; [] if the result is up to date."""
    if before == now:
        return []
    if before is None:
        return ["it does not say what it was made from"]
    there, here = _flat(before), _flat(now)
    told = []
    for name in {**here, **there}:
        was, is_ = there.get(name), here.get(name)
        if was != is_:
            both = (was, is_)
            short = all(not _is_fingerprint(value) and len(str(value)) < 60 for value in both)
            told.append(f"{name} was {was}, is {is_}" if short else f"{name} changed")
    return told


def listed(told: Sequence[str]) -> str:
    """The first few of `changes`, to stand in a message."""
    return "; ".join(told[:_NAMED]) + ("; ..." if told[_NAMED:] else "")


def summary(told: Iterable[Sequence[str]]) -> str:
    """`changes` of many results as one text: the most frequent, with how many results have them."""
    counts = Counter(text for texts in told for text in texts)
    shown = [f"{text} ({count})" for text, count in counts.most_common(_NAMED)]
    return "; ".join(shown) + ("; ..." if len(counts) > _NAMED else "")


class Memory:
    """Values read from files, kept in `<root>/fingerprints` for as long as a file is unchanged.

    A file counts as unchanged while its size and times are. Losing the memory costs time only.

    Args:
        root: the data root. Where it cannot be written to, nothing is kept.
    """

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root) / "fingerprints"

    def read(
        self,
        folder: Path,
        file_names: Sequence[str],
        reader: Callable[[Path], Any] = file_fingerprint,
    ) -> dict[str, Any]:
        """`reader(folder / name)` for every name whose file is there, in the given order.

        Args:
            reader: gives plain JSON values, and always the same for the same file.
        """
        place = str(folder.absolute())
        known_in = self.folder / f"{folder.name}-{fingerprint(place, reader.__name__)[:12]}.json"
        known = _known(known_in)
        settled = time.time_ns() - _RECENT
        states, unknown, paths = {}, [], {}
        for name in file_names:
            paths[name] = folder / name
            try:
                status = os.stat(f"{place}/{name}")
            except FileNotFoundError:
                found = find_file(folder / name)  # as for reading it
                if found is None:
                    continue
                status, paths[name] = found.stat(), found
            states[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            if name not in known or known[name][0] != states[name]:
                unknown.append(name)
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                values = pool.map(lambda name: reader(paths[name]), unknown)
                title = f"fingerprints of {folder.name}"
                many = len(unknown) > 1000
                for name, value in zip(
                    unknown,
                    tqdm(values, title, len(unknown), unit="file", disable=not many),
                    strict=True,
                ):
                    known[name] = [states[name], value]
        finally:
            if unknown:
                lasting = {name: entry for name, entry in known.items() if entry[0][2] < settled}
                _keep(lasting, known_in)
        return {name: known[name][1] for name in states}


def _known(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):  # a broken memory is as good as none
        return {}


def _keep(known: Mapping[str, Any], path: Path) -> None:
    try:
        write_json(path, known)
    except OSError as error:
        logger.warning("%s: not written (%s); files will be read again", path, error.strerror)


def _add(digest: Any, value: Any) -> None:
    """Feeds a value with its kind and length, so that no two values give the same bytes."""
    if isinstance(value, torch.Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value))
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for key in sorted(value):
            _add(digest, key)
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)};".encode())
        for item in value:
            _add(digest, item)
    else:
        packed = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(f"{type(value).__name__} {len(packed)};".encode())
        digest.update(packed)


def _flat(values: MadeFrom, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys, in the values that JSON gives back."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return flat


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and bool(_FINGERPRINT.fullmatch(value))
