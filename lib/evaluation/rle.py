"""Segmentations as COCO writes them: run lengths counted column by column.

Three forms are read (compressed RLE, uncompressed RLE, polygons); what this project writes is
compressed RLE with `counts` as text, which JSON can hold and every COCO reader understands.
"""

from __future__ import annotations

import re
from typing import Any

import hotcoco.mask
import numpy as np
from pycocotools import mask as coco_mask

from lib.structures import Regions

_NUMBER_GOES_ON = bytes(range(ord("P"), ord("o") + 1))
_NUMBER_ENDS = bytes(range(ord("0"), ord("O") + 1))
"""Letters of the text form: 5 bits of a number each, and whether more of it follow."""
_FIRST_NUMBER = re.compile(b"[P-o]*[0-O]")


def regions_to_rle(regions: Regions, proposal_idx: np.ndarray) -> list[dict[str, Any]]:
    """Compressed RLE of some proposals, without ever making their masks.

    The label image is cut into runs once; a mask then is one look-up per run.

    Args:
        proposal_idx: (K,) int64, any order; K may be 0.

    Returns:
        K dicts `{"size": [H, W], "counts": str}`.
    """
    pixels = regions.labels.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=-1))  # (runs,), the first is 0
    run_region = pixels[starts]
    ends = np.append(starts[1:], pixels.size)
    return [
        _encode_runs(regions.membership[i][run_region], ends, regions.size) for i in proposal_idx
    ]


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of one (H, W) mask, bool or {0, 1}."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """(H, W) bool mask of a compressed RLE."""
    return coco_mask.decode(rle).astype(bool)


def compressed(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Brings any COCO segmentation into compressed RLE with text counts.

    Args:
        segmentation: compressed RLE, uncompressed RLE, or a list of polygons (x, y, x, y, ...).
        size: (height, width) of the image.

    Raises:
        ValueError: another form, an RLE of another size, or runs that do not cover the image
            (pycocotools would hang on some of these, and show memory on others); names neither
            file nor image, which the caller knows.
    """
    height, width = size
    if isinstance(segmentation, list) and segmentation:
        short = [p for p in segmentation if not isinstance(p, list) or len(p) < 6 or len(p) % 2]
        if short:
            raise ValueError("a polygon needs at least three points, as x, y, x, y, ...")
        odd = [v for p in segmentation for v in p if not isinstance(v, int | float) or v != v]
        if odd:
            raise ValueError(f"a polygon holds {odd[0]!r:.80}, expected numbers")
        return _as_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("the segmentation is neither an RLE (size, counts) nor a list of polygons")
    stated = segmentation["size"]
    if stated not in ([height, width], (height, width)):
        got = "x".join(map(str, stated)) if isinstance(stated, list | tuple) else repr(stated)
        raise ValueError(f"the mask is {got:.40} (height x width), the image {height}x{width}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        odd = next((n for n in counts if type(n) is not int or n < 0), None)
        if odd is not None:
            raise ValueError(f"RLE counts hold {odd!r:.80}, expected whole numbers from 0")
        if sum(counts) != height * width:
            raise ValueError(f"the runs cover {sum(counts)} pixels, the image {height * width}")
        return _as_text(coco_mask.frPyObjects(segmentation, height, width))
    if not isinstance(counts, str | bytes):
        raise ValueError(f"RLE counts are a {type(counts).__name__}, expected text or a list")
    _check_text(counts.encode("utf-8") if isinstance(counts, str) else counts, size)
    return _as_text(segmentation)


def uncompressed(rle: dict[str, Any]) -> dict[str, Any]:
    """`{"size", "counts": list of int}` of a compressed RLE: runs of 0, of 1, of 0, ..."""
    height, width = rle["size"]
    flat = coco_mask.decode(rle).ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=0))  # where 0 turns into 1 and back
    lengths = np.diff(np.concatenate(([0], starts, [flat.size])))
    return {"size": [height, width], "counts": lengths.tolist()}


def area(rle: dict[str, Any]) -> int:
    """Pixels of a compressed RLE."""
    return int(coco_mask.area(rle))


def tight_box(rle: dict[str, Any]) -> list[float]:
    """[x, y, width, height] around the pixels of a compressed RLE, as COCO wants it."""
    return [float(v) for v in coco_mask.toBbox(rle)]


def _check_text(counts: bytes, size: tuple[int, int]) -> None:
    """Raises ValueError unless the text form holds runs from 0 that cover the image.

    As `lib.proposals.readers.coco_rle.decode_rle` would, ten times as fast: a validation reads
    hundreds of thousands.
    """
    if counts.translate(None, _NUMBER_GOES_ON + _NUMBER_ENDS) or counts[-1:] not in _NUMBER_ENDS:
        raise ValueError("the text of the RLE counts is damaged")
    try:  # this finds negative runs and those beyond the end
        hotcoco.mask.rle_from_string(counts.decode("ascii"), *size)
    except ValueError as error:
        raise ValueError(f"the RLE counts are damaged ({error})") from None
    # What is left is to notice runs that end early. The area is the sum of every other run. A run
    # of 0 put in front turns the others into those that count; as numbers are differences to the
    # last but one before them, each from the fourth number on then comes out larger by the first.
    first = _FIRST_NUMBER.match(counts)
    num_runs = len(counts.translate(None, _NUMBER_GOES_ON))
    too_much = _text_area(b"0" + first[0], size) * ((num_runs - 1) // 2) if first else 0
    covered = _text_area(counts, size) + _text_area(b"0" + counts, size) - too_much
    if (covered - size[0] * size[1]) % 2**32:  # areas are sums of 32 bits
        raise ValueError(
            f"the runs cover {covered % 2**32} pixels, the image has {size[0] * size[1]}; the RLE "
            "counts are cut short"
        )


def _text_area(counts: bytes, size: tuple[int, int]) -> int:
    return int(coco_mask.area({"size": size, "counts": counts}))


def _encode_runs(inside: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """(runs,) bool and the (runs,) pixel each run ends before -> compressed RLE."""
    last = np.append(inside[1:] != inside[:-1], True)  # the last run before a change
    lengths = np.diff(ends[last], prepend=0).tolist()
    counts = [0, *lengths] if inside[0] else lengths  # counts begin with the zeros
    return _as_text(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    return {"size": [int(n) for n in rle["size"]], "counts": counts}
