"""Results that are made image by image and survive an interruption."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from lib.provenance import MadeFrom

SECONDS_TO_LEAVE = 30
"""Time to wait for another process to close a journal."""


class Journal:
    """A file that grows by one line per finished image, so that the rest can be done later.

    The first line says what all results are made from; a journal of anything else is started anew.
    Every other line says what its image is made from; lines that are out of date do not count.
    A line cut short by an interruption or damaged on disk is removed, with everything after it.
    Several processes write one journal each: two cannot have the same one open.

    Args:
        made_from: the record that all results have in common, see lib/provenance.py.
        of_images: fingerprint of what else the results of an image depend on, by id.

    Attributes:
        done: ids of the images that are in the journal and up to date, with where their line
            begins.

    Raises:
        ValueError: another process has it open and does not end.
    """

    def __init__(
        self, path: Path, made_from: MadeFrom, of_images: Mapping[int, str] | None = None
    ) -> None:
        self.path = path
        self._of_images = of_images or {}
        self.done: dict[int, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_alone(path)
        header = json.dumps({"made_from": made_from}, sort_keys=True)
        whole = self._scan(header.encode() + b"\n")
        self._file.truncate(whole)
        if whole == 0:
            self._write(header)

    def _scan(self, header: bytes) -> int:
        """Collects the images that are done; returns the length of the usable part in bytes."""
        whole = 0
        self._file.seek(0)
        for number, line in enumerate(self._file):
            if number == 0 and line != header:
                return 0
            if not line.endswith(b"\n"):
                break
            try:
                if number > 0:
                    entry = json.loads(line)
                    image_id = entry["image_id"]
                    if entry["made_from"] == self._of_images.get(image_id):
                        self.done[image_id] = whole
            except (ValueError, TypeError, KeyError):
                break
            whole += len(line)
        return whole

    def append(self, image_id: int, results: list[Any]) -> None:
        """Writes the results of an image, plain JSON values, and flushes the file."""
        made_from = self._of_images.get(image_id)
        entry = {"image_id": image_id, "made_from": made_from, "results": results}
        line = json.dumps(entry, allow_nan=False)
        self.done[image_id] = self._write(line)

    def results_of(self, image_id: int) -> list[Any]:
        """Results that were appended for one image."""
        self._file.seek(self.done[image_id])
        return json.loads(self._file.readline())["results"]

    def _write(self, line: str) -> int:
        """Writes a line at the end; returns where it begins."""
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        return start

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_alone(path: Path) -> BinaryIO:
    """Opens a file to read and append, and locks it; closing it unlocks it."""
    begun = time.monotonic()
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() - begun > SECONDS_TO_LEAVE:
                raise ValueError(
                    f"{path}: another process is writing there; let it finish, or end it, and run "
                    "the same command again"
                ) from None
            time.sleep(0.2)
            continue
        except OSError:  # a file system without locks
            return file
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # finished and removed by the other meanwhile
