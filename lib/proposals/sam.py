"""Proposals of Segment Anything: SAM, SAM 2 and what else in transformers makes masks from points.

These networks were trained with masks, so what is made with them was not made from image-level
labels alone; the record of such proposals says so (`masks_seen`), and results made with them do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from lib.parallel import free_memory
from lib.proposals.features import FindFeatures
from lib.proposals.generator import FindPoints, Generate, Generator
from lib.proposals.regions import encode, encode_parts, encode_unions
from lib.proposals.sam_model import files_fingerprint, folder_name, load_model
from lib.provenance import Memory
from lib.structures import Regions

_RECIPE = 1
"""Goes up with every change that gives other proposals."""
_OFFSET = 1.0
"""Of the logits above and below the border, between which a stable mask changes little."""
_TOGETHER = 256
"""Masks compared at once."""
_LARGE_TOGETHER = 32
"""Masks enlarged at once; more are not faster."""
_UNKNOWN_MEMORY = 2**32
"""Bytes to assume free where the system does not tell."""
_POINT_MAPS = 13
"""Memory of the mask decoder for a point, in embeddings of an image (measured: 8 of SAM, 9 to 13
of SAM 2)."""


@dataclass(frozen=True)
class Sam(Generator):
    """This is the section `proposals.sam` of a configuration."""

    model: str = "facebook/sam-vit-base"
    """Name on the hub, or a folder with its files."""
    points_per_side: int = 32
    """Of the grid of points that masks are asked for at."""
    prm: str | None = None
    """File of a trained PRM (`tools/prm.py train`): its highest peaks are points, too."""
    peaks: int = 32
    """At most so many of them."""
    points_per_batch: int = 64
    """At most; fewer where memory is short. Changes results by rounding only."""
    pred_iou_thresh: float = 0.88
    """Masks that the model itself expects to be worse are left out; 0 is no limit."""
    stability_thresh: float = 0.95
    """So are masks that change more with the threshold of their logits; 0 is no limit."""
    max_iou: float = 0.8
    """Masks whose IoU with a better one is above this are left out."""
    min_area: int = 80
    """Pixels. Smaller parts of a mask are taken away, smaller holes filled."""
    long_side: int = 1024
    """Masks of larger images are made at this size and enlarged."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the network; less than float32 on a GPU only."""

    on_device = True

    def __post_init__(self) -> None:
        for name, least in (
            *(("points_per_side", 1), ("points_per_batch", 1), ("long_side", 1)),
            *(("peaks", 0), ("min_area", 0)),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("pred_iou_thresh", "stability_thresh", "max_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}: expected a number from 0 to 1, got {getattr(self, name)}"
                )

    def record(self, max_proposals: int, memory: Memory) -> dict[str, Any]:
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        del options["points_per_batch"], options["prm"]
        if self.prm is None:
            del options["peaks"]
        return {
            "recipe": _RECIPE,
            "generator": "sam",
            "max_proposals": max_proposals,
            **options,
            "model": folder_name(self.model),
            "files": files_fingerprint(self.model, memory),
            "masks_seen": f"{folder_name(self.model)} was trained with masks",
        }

    def open(
        self,
        max_proposals: int,
        device: str = "cpu",
        find_points: FindPoints | None = None,
        find_features: FindFeatures | None = None,
    ) -> Generate:
        device_type = torch.device(device).type
        if self.dtype != "float32" and device_type != "cuda":
            raise ValueError(f"proposals.sam.dtype: {self.dtype} needs a GPU; take float32")
        network, processor = load_model(self.model, getattr(torch, self.dtype))
        return _Prompted(self, max_proposals, network.to(device), processor, find_points)


@dataclass(frozen=True, eq=False)
class _Prompted:
    """The network with its prompts: a `Generate`."""

    options: Sam
    max_proposals: int
    network: Any
    processor: Any
    find_points: FindPoints | None

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Regions:
        height, width = image.shape[:2]
        scale = min(1.0, self.options.long_side / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        masks, scores = self._masks(image, size, self.options.min_area * scale**2)
        best = np.argsort(-scores, kind="stable")
        kept = distinct([masks[n] for n in best], self.options.max_iou, self.max_proposals)
        parts = (coco_mask.decode(kept[n : n + 64]) for n in range(0, len(kept), 64))
        if kept:
            regions = encode_parts((part.transpose(2, 0, 1) for part in parts), size)
        else:
            regions = encode(np.ones((1, *size), bool))
        if scale < 1:
            labels = cv2.resize(
                regions.labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT
            )
            regions = encode_unions(labels, regions.membership)
        return regions

    def _masks(
        self, image: np.ndarray, size: tuple[int, int], min_area: float
    ) -> tuple[list[dict[str, Any]], np.ndarray]:
        """All masks that pass the limits.

        Returns:
            K compressed RLE of `size`; (K,) float64, how good each is.
        """
        options, network = self.options, self.network
        points = grid(options.points_per_side)
        if self.find_points is not None:
            points = np.concatenate([points, self.find_points(image, options.peaks)])
        given = self.processor(
            images=Image.fromarray(image),  # an array of 3 rows could be taken for channels
            input_points=(points * image.shape[1::-1])[None, :, None].tolist(),
            return_tensors="pt",
        )
        pixels = given["pixel_values"].to(network.device, network.dtype)
        found = network.get_image_embeddings(pixels)
        embeddings = {"image_embeddings": found}
        if isinstance(found, tuple):  # of SAM-HQ
            embeddings = dict(
                zip(("image_embeddings", "intermediate_embeddings"), found, strict=True)
            )
            found = found[0]
        last = found if isinstance(found, Tensor) else found[-1]
        per_point = _POINT_MAPS * last.numel() * last.element_size()
        per_mask = 8 * pixels[0, 0].numel() + 12 * size[0] * size[1]
        points = given["input_points"].to(network.device, torch.float32)  # (1, K, 1, 2)
        masks, scores, start, batch = [], [], 0, options.points_per_batch
        while start < points.shape[1]:
            some = points[:, start : start + min(batch, that_fit(per_point, network.device))]
            try:
                out = network(**embeddings, input_points=some)
            except torch.OutOfMemoryError:
                batch = some.shape[1] // 2
                if batch == 0:
                    raise
                continue
            start += some.shape[1]
            iou = out.iou_scores.reshape(-1).float()  # (batch * masks of a point,)
            logits = out.pred_masks.flatten(0, 2)  # (batch * masks of a point, h, w)
            kept = passes(iou, options.pred_iou_thresh).nonzero()[:, 0]
            together = min(that_fit(per_mask, network.device), _LARGE_TOGETHER)
            for some in kept.split(together) if len(kept) else ():
                large = self._enlarged(logits[some].float(), size, given)
                stability = (large > _OFFSET).sum((1, 2)) / (large > -_OFFSET).sum((1, 2))
                stable = passes(stability, options.stability_thresh)
                score = (iou[some] * stability)[stable].tolist()
                for mask, value in zip((large > 0)[stable].cpu().numpy(), score, strict=True):
                    mask = without_small_parts(mask, min_area)
                    if mask.any():
                        masks.append(coco_mask.encode(np.asfortranarray(mask.view(np.uint8))))
                        scores.append(value)
        return masks, np.array(scores)

    def _enlarged(self, logits: Tensor, size: tuple[int, int], given: Mapping[str, Any]) -> Tensor:
        """(K, *size) float32 of (K, h, w)."""
        seen = given.get("reshaped_input_sizes")  # without the padding of SAM
        return self.processor.image_processor.post_process_masks(
            [logits[:, None]],
            [size],
            reshaped_input_sizes=None if seen is None else seen.tolist(),
            binarize=False,
        )[0][:, 0]


def grid(points_per_side: int) -> np.ndarray:
    """(N * N, 2) float64: x and y of the centres of N x N cells, from 0 to 1, in reading order."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def passes(values: Tensor, thresh: float) -> Tensor:
    """Mask of the values that are not below a limit, where 0 is none."""
    return values >= thresh if thresh else torch.ones_like(values, dtype=torch.bool)


def that_fit(size: float, device: torch.device) -> int:
    """Number of things of `size` bytes that may be held at once; at least 1."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + reserved
    else:
        free = free_memory() or _UNKNOWN_MEMORY
    return max(1, int(free / 2 / size))


def without_small_parts(mask: np.ndarray, min_area: float) -> np.ndarray:
    """An (H, W) bool mask whose holes of fewer pixels are filled, and then such parts taken away.

    A hole does not touch the border of the image. Pixels touch at corners too.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if min_area <= 1 or not len(rows):
        return mask
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    part = np.pad(mask[box], 1)
    for inside in (False, True):
        count, labels, stats, _ = cv2.connectedComponentsWithStats((part == inside).view(np.uint8))
        small = stats[:, cv2.CC_STAT_AREA] < min_area
        small[0] = False  # all that is not looked at
        part = part ^ small[labels]
    cleaned = np.zeros_like(mask)
    cleaned[box] = part[1:-1, 1:-1]
    return cleaned


def distinct(rles: Sequence[dict[str, Any]], max_iou: float, limit: int) -> list[dict[str, Any]]:
    """The first masks that do not repeat an earlier one of them, at most `limit`.

    Args:
        rles: K compressed RLE.
        max_iou: with an earlier one above which a mask is left out.
    """
    kept: list[dict[str, Any]] = []
    for start in range(0, len(rles), _TOGETHER):
        some = list(rles[start : start + _TOGETHER])
        free = np.ones(len(some), bool)
        if kept:
            free = coco_mask.iou(some, kept, [0] * len(kept)).max(axis=1) <= max_iou
        some = [rle for rle, is_free in zip(some, free, strict=True) if is_free]
        if not some:
            continue
        near = coco_mask.iou(some, some, [0] * len(some)) > max_iou
        chosen: list[int] = []
        for n in range(len(some)):
            if len(kept) + len(chosen) < limit and not near[n, chosen].any():
                chosen.append(n)
        kept += [some[n] for n in chosen]
        if len(kept) == limit:
            break
    return kept
