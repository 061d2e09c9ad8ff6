"""Run-length encoded masks in JSON: Segment Anything's mask generator, and any other like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lib.files import read_json
from lib.proposals.readers.base import FileReader, stack


class CocoRleReader(FileReader):
    """`<stem>.json`: a list of RLEs `{"size": [H, W], "counts": text or list}`.

    An entry may hold its RLE as `segmentation` (the mask generator of Segment Anything), and the
    list may stand under `annotations` (its published data set). The order of the file is kept.
    """

    suffix = ".json"
    content = "its RLE list"

    @staticmethod
    def read(found: Path) -> np.ndarray:
        entries = read_json(found)
        if isinstance(entries, dict):
            entries = entries.get("annotations")
        if not isinstance(entries, list):
            raise ValueError(
                f"{found}: expected a list of RLEs, or of entries with a `segmentation`"
            )
        masks = []
        for i, entry in enumerate(entries):
            rle = entry.get("segmentation", entry) if isinstance(entry, dict) else entry
            try:
                masks.append(decode_rle(rle))
            except ValueError as error:
                raise ValueError(f"{found}: entry {i}: {error}") from None
        return stack(masks, str(found))


def decode_rle(rle: Any) -> np.ndarray:
    """(H, W) bool mask of a COCO RLE, compressed or not.

    Exactly what pycocotools decodes, but runs that do not add up to the image are an error, where
    it returns whatever stood in memory.

    Args:
        rle: `{"size": [H, W], "counts": ...}`; counts are lengths of runs of 0, 1, 0, ... down the
            columns, as a list or in COCO's text form.

    Raises:
        ValueError: it is something else, or its runs do not cover H * W pixels.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise ValueError("expected an RLE with size and counts")
    size, counts = rle["size"], rle["counts"]
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(type(n) is int and n > 0 for n in size)
    ):
        raise ValueError(f"size is {size!r}, expected [height, width]")
    if isinstance(counts, str | bytes):
        runs = _runs_of_text(counts.encode("latin1", "replace") if type(counts) is str else counts)
    elif isinstance(counts, list) and all(type(n) is int for n in counts):
        runs = np.array(counts, np.int64)
    else:
        raise ValueError(f"counts are a {type(counts).__name__}, expected text or a list of ints")
    height, width = size
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"the runs cover {runs.sum()} pixels, {height}x{width} has {height * width}; "
            "the counts are damaged or belong to another size"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _runs_of_text(text: bytes) -> np.ndarray:
    """Run lengths of COCO's text form: 5 bits a letter, least first, bit 6 says that more follow;
    from the fourth on, a number is the difference to the last but one before it."""
    letters = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if ((letters < 0) | (letters > 63)).any() or (len(letters) and letters[-1] & 32):
        raise ValueError("the text of counts is damaged")
    if not len(letters):
        return letters
    last = (letters & 32) == 0
    start = np.flatnonzero(np.append(True, last[:-1]))
    number = np.cumsum(last) - last  # which number a letter belongs to
    place = np.arange(len(letters)) - start[number]
    if place.max() > 6:
        raise ValueError("the text of counts is damaged")
    values = np.add.reduceat((letters & 31) << (5 * place), start)
    negative = (letters[last] & 16) != 0
    values -= np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    for chain in (slice(1, None, 2), slice(2, None, 2)):
        values[chain] = np.cumsum(values[chain])
    return values
