"""The things that travel between the parts, with their shapes and conventions.

Boxes are xyxy in pixels, sizes are (height, width). Classes are 0..C-1. Score matrices are
P x (C+1) and their column 0 is the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image of a data set, as its json says."""

    image_id: int
    file_name: str
    """Relative to the image folder; may name sub-folders."""
    height: int
    width: int
    image_labels: np.ndarray
    """(C,) float32 in {0, 1}."""
    original_id: int | str | None = None
    """The id in the json, where that was text or too large and `image_id` takes its place."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.height, self.width

    @property
    def known_as(self) -> int | str:
        """The id by which files made elsewhere know the image."""
        return self.image_id if self.original_id is None else self.original_id


@dataclass(frozen=True, eq=False)
class Regions:
    """P mask proposals of one image, losslessly: pixels that lie in the same proposals are one
    region (see lib/proposals/regions.py)."""

    labels: np.ndarray
    """(H, W) int32, the region of every pixel, 0..R-1."""
    membership: np.ndarray
    """(P, R) bool, which regions a proposal is made of."""
    areas: np.ndarray
    """(R,) int64, pixels of every region; their sum is H * W."""

    @property
    def num_proposals(self) -> int:
        return self.membership.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.labels.shape

    def masks(self, proposal_idx: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(K, H, W) bool masks of the chosen proposals."""
        return self.membership[proposal_idx].take(self.labels, axis=1)


@dataclass(frozen=True, eq=False)
class Proposals:
    """An image's proposals as stored: the masks, and boxes and 7x7 masks for pooling."""

    regions: Regions
    boxes: np.ndarray
    """(P, 4) float32 (xmin, ymin, xmax + 1, ymax + 1), clipped to [0, W-1] x [0, H-1]."""
    roi_masks: np.ndarray
    """(P, 7, 7) bool, the mask inside its unclipped box, resized by nearest neighbour."""

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of proposals around peaks, see docs/specification.md#clusters."""

    number: np.ndarray | Tensor
    """(P,) int64, cluster of every proposal, 1..K; 0 for proposals in none."""
    column: np.ndarray | Tensor
    """(P,) int64, column of the cluster's class: 0 background, 1..C; -1 for proposals in none."""


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """One image as a network sees it; what training knows about it is added by its kinds."""

    image_id: int
    file_name: str
    image: Tensor
    """(3, h, w) float32, normalised."""

    def to(self, device: str, non_blocking: bool = False) -> Self:
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """In memory from which a GPU copies while the program goes on; DataLoader calls it."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = {
            f.name: change(value)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True, eq=False)
class View(TrainingSample):
    """An image and its proposals: all that the network looks at."""

    boxes: Tensor
    """(P, 4) float32 in pixels of `image`."""
    roi_masks: Tensor
    """(P, 7, 7) float32 in {0, 1}."""

    def view(self) -> View:
        """No more than this, to be sent to a device."""
        return View(**{field.name: getattr(self, field.name) for field in fields(View)})


@dataclass(frozen=True, eq=False)
class Sample(View):
    """An image with its proposals and its image-level labels: what CIM is trained on."""

    membership: Tensor
    """(P, R) bool, see Regions."""
    areas: Tensor
    """(R,) int64, see Regions."""
    image_labels: Tensor
    """(C,) float32 in {0, 1}."""
    cluster_id: Tensor
    """(P,) int64, see Clusters; all 0 where there are none."""
    cluster_column: Tensor
    """(P,) int64, see Clusters; all -1 where there are none."""
    present: Tensor = None
    """(N,) int64, the classes of the image, 0..C-1 ascending; made from `image_labels`."""
    num_pixels: int = None
    """Of the image as stored; made from `areas`."""

    def __post_init__(self) -> None:
        # Both are made once, on the CPU: on a GPU they would be waited for.
        if self.present is None:
            object.__setattr__(self, "present", self.image_labels.nonzero()[:, 0])
        if self.num_pixels is None and self.areas is not None:
            object.__setattr__(self, "num_pixels", int(self.areas.sum()))


@dataclass(frozen=True, eq=False)
class ReadInstances:
    """Image and instances before scaling and mirroring."""

    record: ImageRecord
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    masks: np.ndarray
    """(N, H, W) uint8 in {0, 1}."""
    class_idx: np.ndarray
    """(N,) int64, 0..C-1."""
    has_mask: np.ndarray | None = None
    """(N,) bool; False where the mask is only a box. None: all are masks."""


@dataclass(frozen=True, eq=False)
class InstanceSample(TrainingSample):
    """An image with N instances: what a Mask R-CNN is trained on."""

    boxes: Tensor
    """(N, 4) float32 xyxy in pixels of `image`, tight: x2 and y2 are one past the last pixel."""
    class_idx: Tensor
    """(N,) int64, 0..C-1."""
    masks: Tensor
    """(N, h, w) uint8 in {0, 1}."""
    has_mask: Tensor | None = None
    """(N,) bool; False for an instance of which only the box is known, whose mask is that box.
    None: all have masks."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of P proposals from one pass of the network. S is the number of stages."""

    cls_prob: Tensor
    """(P, C+1), softmax over classes (MIL branch)."""
    det_prob: Tensor
    """(P, C+1), softmax over proposals (MIL branch)."""
    refine_cls_prob: Tensor
    """(S, P, C+1), softmax over classes."""
    refine_integrity_prob: Tensor
    """(S, P, C+1), sigmoid: the integrity of a proposal as an instance of a class."""


@dataclass(frozen=True, eq=False)
class Instances:
    """Proposals taken to be whole objects in one image, one row for each of the S stages.

    Dense over the P proposals, so that nothing has to wait for a count on CUDA.
    """

    class_idx: Tensor
    """(S, P) int64, 0..C-1; -1 for proposals that are no instance."""
    weight: Tensor
    """(S, P) float32, 0 for proposals that are no instance."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Training targets of the S stages, for every proposal."""

    column: Tensor
    """(S, P) int64: -1 no label, 0 background, 1..C foreground."""
    weight: Tensor
    """(S, P) float32, 0 without a label."""
    integrity_target: Tensor
    """(S, P) float32 in {0, 1}."""


@dataclass(frozen=True, eq=False)
class Detections:
    """Scored instances of one image, best first."""

    proposal_idx: np.ndarray
    """(K,) int64."""
    class_idx: np.ndarray
    """(K,) int64, 0..C-1."""
    scores: np.ndarray
    """(K,) float32, descending."""
