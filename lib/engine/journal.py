"""Results that are made image by image and survive an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class Journal:
    """A file that grows by one line per finished image, so that the rest can be done later.

    The first line says what the results are made from; a journal of anything else is begun anew. A
    last line cut short by an interruption is removed. Several processes write one each.

    Args:
        made_from: plain JSON values that the results depend on.

    Attributes:
        done: ids of the images that are in the journal, with where their line begins.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[int, int] = {}
        header = json.dumps({"made_from": made_from}, sort_keys=True)
        whole = self._scan(header.encode() + b"\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(whole)
        if whole == 0:
            self._write(header)

    def _scan(self, header: bytes) -> int:
        """Notes the images that are done; returns the length of the usable part in bytes."""
        if not self.path.is_file():
            return 0
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                if number == 0 and line != header:
                    return 0
                if number > 0:
                    self.done[json.loads(line)["image_id"]] = whole
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
