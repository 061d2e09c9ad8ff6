"""Results that are made image by image and survive an interruption."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

SECONDS_TO_LEAVE = 30
"""What others that have a journal open are given to end."""


class Journal:
    """A file that grows by one line per finished image, so that the rest can be done later.

    The first line says what the results are made from; a journal of anything else is begun anew.
    What an interruption has cut short or a broken disk has spoilt is removed, with all behind it.
    Several processes write one each: no two can have the same one open.

    Args:
        made_from: plain JSON values that the results depend on.

    Attributes:
        done: ids of the images that are in the journal, with where their line begins.

    Raises:
        ValueError: another process has it open and does not end.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[int, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_alone(path)
        header = json.dumps({"made_from": made_from}, sort_keys=True)
        whole = self._scan(header.encode() + b"\n")
        self._file.truncate(whole)
        if whole == 0:
            self._write(header)

    def _scan(self, header: bytes) -> int:
        """Notes the images that are done; returns the length of the usable part in bytes."""
        whole = 0
        self._file.seek(0)
        for number, line in enumerate(self._file):
            if number == 0 and line != header:
                return 0
            if not line.endswith(b"\n"):
                break
            try:
                if number > 0:
                    self.done[json.loads(line)["image_id"]] = whole
            except (ValueError, TypeError, KeyError):
                break
            whole += len(line)
        return whole

    def append(self, image_id: int, results: list[Any]) -> None:
        """Adds the results of an image, plain JSON values, and hands them to the system."""
        line = json.dumps({"image_id": image_id, "results": results}, allow_nan=False)
        self.done[image_id] = self._write(line)

    def results_of(self, image_id: int) -> list[Any]:
        """What was added for one image."""
        self._file.seek(self.done[image_id])
        return json.loads(self._file.readline())["results"]

    def _write(self, line: str) -> int:
        """Returns where the line begins."""
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
    """Opens a file to read and to append, and locks it; the system unlocks it when it is closed."""
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
