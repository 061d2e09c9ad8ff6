"""Masks as COCO writes them: run lengths counted column by column.

Compressed RLE, uncompressed RLE and polygons are read. This project writes compressed RLE with
`counts` as text, which JSON can hold and every COCO reader understands.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco.mask
import numpy as np
from pycocotools import mask as coco_mask

from lib.files import whole
from lib.structures import Regions

_NUMBER_GOES_ON = bytes(range(ord("P"), ord("o") + 1))
_NUMBER_ENDS = bytes(range(ord("0"), ord("O") + 1))
"""Letters of the text form: 5 bits of a number each, and whether more follow."""
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
    ends = np.append(starts[1:], pixels.size)
    encoded = []
    for i in proposal_idx:
        inside = regions.membership[i][pixels[starts]]  # (runs,)
        last = np.append(inside[1:] != inside[:-1], True)  # the last run before a change
        lengths = np.diff(ends[last], prepend=0).tolist()
        counts = [0, *lengths] if inside[0] else lengths  # counts begin with the zeros
        encoded.append(_from_counts(counts, regions.size))
    return encoded


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of one (H, W) mask, bool or {0, 1}."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def mask_fields(mask: np.ndarray) -> dict[str, Any]:
    """Segmentation, area and bbox of an annotation with this (H, W) mask."""
    rle = mask_to_rle(mask)
    return {"segmentation": rle, "area": area(rle), "bbox": tight_box(rle)}


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """(H, W) bool mask of a compressed RLE."""
    return coco_mask.decode(rle).astype(bool)


def masks_of(entries: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """(N, *size) bool masks of N results or annotations with compressed RLE; N may be 0."""
    masks = [rle_to_mask(entry["segmentation"]) for entry in entries]
    return np.array(masks, bool).reshape(-1, *size)


class NoMask(ValueError):
    """A segmentation that draws nothing: empty, less than a triangle, not finite, far outside."""


def decode(segmentation: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W) bool mask of any COCO segmentation; arguments and errors as for `compressed`."""
    return rle_to_mask(compressed(segmentation, size))


def compressed(segmentation: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Compressed RLE with text counts of any COCO segmentation.

    Args:
        segmentation: compressed RLE, uncompressed RLE, a list of these, or a list of polygons
            (x, y, x, y, ...; parts of fewer than three points are left out).
        size: (height, width) of the image; None takes the size that an RLE states.

    Raises:
        NoMask: no mask can be drawn from it.
        ValueError: an RLE of another size, or whose runs do not cover the image (pycocotools
            would hang on some of these, and show memory on others). Names neither file nor image,
            which the caller knows.
    """
    if segmentation is None or isinstance(segmentation, list | dict | str) and not segmentation:
        raise NoMask("the segmentation is empty")
    if isinstance(segmentation, list):
        if isinstance(segmentation[0], dict):
            parts = [compressed(part, size) for part in segmentation]
            if any(part["size"] != parts[0]["size"] for part in parts):
                raise ValueError("the segmentation is a list of RLEs of different sizes")
            return _as_text(_merged(parts))
        if size is None:
            raise ValueError("a polygon can be drawn only where the size of the image is known")
        return _from_polygons(segmentation, *size)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise NoMask("the segmentation is neither an RLE (size, counts) nor a list of polygons")
    height, width = _checked_size(segmentation["size"], size)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        runs = [whole(n) for n in counts]
        odd = [n for n, run in zip(counts, runs, strict=True) if run is None or run < 0]
        if odd:
            raise ValueError(f"RLE counts hold {odd[0]!r:.80}, expected whole numbers from 0")
        if sum(runs) != height * width:
            raise ValueError(
                f"the runs cover {sum(runs)} pixels, the image has {height * width}; the counts "
                "are damaged or belong to another size"
            )
        return _from_counts(runs, (height, width))
    if not isinstance(counts, str | bytes):
        raise ValueError(f"RLE counts are a {type(counts).__name__}, expected text or a list")
    if isinstance(counts, str):
        counts = _bytes_of(counts)
    _check_text(counts, (height, width))
    return _as_text({"size": [height, width], "counts": counts})


MAX_PIXELS = 2**28
"""Larger masks are refused: one of this size takes 256 MB wherever it is drawn."""
_MAX_EDGE = 2**22
"""Pixels that the outline of a mask may be long: the rasteriser needs some 80 bytes for each."""


def _checked_size(stated: Any, size: tuple[int, int] | None) -> tuple[int, int]:
    sides = [whole(n) for n in stated] if isinstance(stated, list | tuple) else []
    if size is not None and tuple(sides) != tuple(size):
        got = "x".join(map(str, stated)) if sides else repr(stated)
        raise ValueError(f"the mask is {got:.40} (height x width), the image {size[0]}x{size[1]}")
    if len(sides) != 2 or None in sides or min(sides) < 1 or sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"size is {stated!r:.80}, expected [height, width]")
    return sides[0], sides[1]


def _bytes_of(counts: str) -> bytes:
    if counts[:2] in ("b'", 'b"'):  # Python's bytes, written out as text
        try:
            return bytes(ast.literal_eval(counts))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass  # damaged, which the check of the text says
    return counts.encode("utf-8", "replace")


def _from_polygons(polygons: list, height: int, width: int) -> dict[str, Any]:
    if not isinstance(polygons[0], list):
        polygons = [polygons]  # one polygon that was not put into a list
    drawn, length = [], 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise NoMask("a polygon is a list x, y, x, y, ... of at least three points")
        odd = [v for v in polygon if type(v) is not float and type(v) is not int]
        if odd:
            raise NoMask(f"a polygon holds {odd[0]!r:.80}, expected numbers")
        try:
            points = np.array(polygon, np.float64).reshape(-1, 2)
        except OverflowError:
            raise NoMask("a polygon lies far outside the image") from None
        if not np.isfinite(points).all():
            raise NoMask("a polygon holds numbers that are not finite")
        reach = max(height, width)
        if len(points) and (points.min() < -reach or points.max() > 2 * reach):
            raise NoMask("a polygon lies far outside the image")
        if len(points) >= 3:
            length += np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
            drawn.append(polygon)
    if not drawn:
        raise NoMask("a polygon needs at least three points, as x, y, x, y, ...")
    if length > _MAX_EDGE:
        raise NoMask(f"the outline is {length:.0f} pixels long, at most {_MAX_EDGE} are drawn")
    mask = _merged(coco_mask.frPyObjects(drawn, height, width))
    if not area(mask):
        x, y = (np.concatenate([polygon[axis::2] for polygon in drawn]) for axis in (0, 1))
        if x.max() <= 0 or y.max() <= 0 or x.min() >= width or y.min() >= height:
            raise NoMask("the polygons lie outside the image")
    return _as_text(mask)


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The union of masks; a few at a time, since merging them one by one takes N^2 time."""
    while len(parts) > 16:
        parts = [coco_mask.merge(parts[start : start + 16]) for start in range(0, len(parts), 16)]
    return coco_mask.merge(parts)


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


def containment(masks: Sequence[dict[str, Any]]) -> np.ndarray:
    """Fraction of every mask that lies in every other one, of N compressed RLEs.

    Returns:
        (N, N) float; [i, j] = |i & j| / |j|. N may be 0.
    """
    if not masks:
        return np.zeros((0, 0))
    masks = list(masks)
    return np.asarray(
        coco_mask.iou(masks, masks, [True] * len(masks))
    ).T  # of a crowd: |i & j| / |i|


def snap(masks: Sequence[dict[str, Any]], regions: Regions, min_iou: float) -> list[dict[str, Any]]:
    """Puts the proposal that overlaps a mask most in its place, if it does so enough.

    Args:
        masks: N compressed RLEs of the size of the image.
        regions: its proposals; P may be 0.
        min_iou: the IoU from which on a mask is replaced.

    Returns:
        N compressed RLEs; those that stay are the same objects.
    """
    areas = regions.membership @ regions.areas  # (P,)
    snapped = []
    for mask in masks:
        inside = np.bincount(regions.labels[rle_to_mask(mask)], minlength=len(regions.areas))
        shared = regions.membership @ inside
        iou = shared / (areas + area(mask) - shared)
        best = iou.argsort()[-1:]
        good = best[iou[best] >= min_iou]
        snapped += regions_to_rle(regions, good) or [mask]
    return snapped


def tight_box(rle: dict[str, Any]) -> list[float]:
    """[x, y, width, height] around the pixels of a compressed RLE, as COCO wants it."""
    return [float(v) for v in coco_mask.toBbox(rle)]


def _check_text(counts: bytes, size: tuple[int, int]) -> None:
    """Raises ValueError unless the text holds runs from 0 that cover the image.

    Ten times as fast as decoding it: a validation reads hundreds of thousands.
    """
    if counts.translate(None, _NUMBER_GOES_ON + _NUMBER_ENDS) or counts[-1:] not in _NUMBER_ENDS:
        raise ValueError("the text of the RLE counts is damaged")
    try:  # this finds negative runs and those beyond the end
        hotcoco.mask.rle_from_string(counts.decode("ascii"), *size)
    except ValueError as error:
        raise ValueError(f"the RLE counts are damaged ({error})") from None
    # Runs may still end early. The area is the sum of every other run; a run of 0 put in front
    # makes it that of the others. As numbers are differences to the last but one before them, each
    # from the fourth on then comes out larger by the first.
    first = _FIRST_NUMBER.match(counts)
    num_runs = len(counts.translate(None, _NUMBER_GOES_ON))
    pixels = [area({"size": size, "counts": text}) for text in (counts, b"0" + counts)]
    too_much = area({"size": size, "counts": b"0" + first[0]}) if first else 0
    covered = sum(pixels) - too_much * ((num_runs - 1) // 2)
    if (covered - size[0] * size[1]) % 2**32:  # areas are sums of 32 bits
        raise ValueError(
            f"the runs cover {covered % 2**32} pixels, the image has {size[0] * size[1]}; the RLE "
            "counts are cut short"
        )


def _from_counts(counts: list[int], size: tuple[int, int]) -> dict[str, Any]:
    return _as_text(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}
