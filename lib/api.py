"""A trained network in a few lines, for notebooks and other programs.

from lib.api import CIM

cim = CIM.load("Outputs/quickstart")
found = cim.predict("image.png", score_thresh=0.3)
found.boxes, found.labels, found.scores, found.masks, found.names
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from lib.config import Config, ConfigError, config_from, load_config
from lib.data.coco import ImageRecord
from lib.data.images import read_image
from lib.data.loader import CimDataset, ReadImage, no_clusters
from lib.data.transforms import mask_boxes
from lib.engine.build import build_detector
from lib.engine.checkpoint import CheckpointError, load_checkpoint, load_model
from lib.engine.runs import find_checkpoint
from lib.modeling.model_builder import CIMNet, build_model
from lib.prm.prompts import open_generator
from lib.proposals.generator import Generate
from lib.proposals.regions import mask_areas, proposals_from_masks, proposals_from_regions
from lib.structures import Proposals, Regions
from lib.visualization.draw import draw_instances

if TYPE_CHECKING:
    from supervision import Detections

ImageLike = str | Path | Image.Image | np.ndarray
"""The path of a file, a PIL image, or (H, W, 3) or (H, W) uint8 in RGB order."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The K instances found in an image, best first."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes: np.ndarray
    """(K, 4) float32 xyxy in pixels, tight: a mask of one pixel (x, y) has (x, y, x + 1, y + 1)."""
    labels: np.ndarray
    """(K,) int64, 0..C-1."""
    scores: np.ndarray
    """(K,) float32 in [0, 1], descending."""
    masks: np.ndarray
    """(K, H, W) bool."""
    proposal_idx: np.ndarray
    """(K,) int64, the proposal that each instance is; -1 where there is none."""
    class_names: tuple[str, ...]
    """Names of all C classes."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """The class names of the K instances."""
        return [self.class_names[label] for label in self.labels]

    def to_supervision(self) -> Detections:
        """The instances as `supervision.Detections`, with class names and proposals in `data`.

        Raises:
            ImportError: the package supervision is not installed.
        """
        supervision = _supervision()
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, str), "proposal_idx": self.proposal_idx},
        )

    @classmethod
    def from_supervision(
        cls, detections: Detections, image: ImageLike, class_names: Sequence[str]
    ) -> Prediction:
        """The way back, for detections of any origin.

        Args:
            detections: with masks of the size of the image, confidences and class ids.
            image: the image that they were found in.
            class_names: of all C classes.

        Raises:
            ValueError: masks, confidences or class ids are missing or do not fit.
        """
        pixels = as_rgb(image)
        if not len(detections):
            detections = _supervision().Detections(
                np.zeros((0, 4)), np.zeros((0, *pixels.shape[:2]), bool), np.zeros(0), np.zeros(0)
            )
        given = (detections.mask, detections.confidence, detections.class_id)
        if any(part is None for part in given):
            raise ValueError(
                "an instance needs a mask, a confidence and a class id; one is missing"
            )
        masks, scores, labels = (np.asarray(part) for part in given)
        if masks.shape[1:] != pixels.shape[:2]:
            raise ValueError(
                f"masks of {masks.shape[1]}x{masks.shape[2]} pixels for an image of "
                f"{pixels.shape[0]}x{pixels.shape[1]} (height x width)"
            )
        if not np.isin(labels, range(len(class_names))).all():
            raise ValueError(
                f"class ids {labels.min()} to {labels.max()}; {len(class_names)} class names were "
                "given, for the ids from 0 on"
            )
        proposals = detections.data.get("proposal_idx", np.full(len(labels), -1))
        order = np.argsort(-scores, kind="stable")
        return cls(
            image=pixels,
            boxes=np.asarray(detections.xyxy, np.float32)[order],
            labels=labels.astype(np.int64)[order],
            scores=scores.astype(np.float32)[order],
            masks=masks.astype(bool)[order],
            proposal_idx=np.asarray(proposals, np.int64)[order],
            class_names=tuple(class_names),
        )

    def draw(self) -> np.ndarray:
        """The image with the instances over it, enlarged if it is small, as (H, W, 3) uint8 RGB."""
        return draw_instances(self.image, self.masks, self.labels, self.scores, self.class_names)


class CIM:
    """A trained network with its configuration and class names.

    Args:
        model: the network. It is moved to `device` and prepared for inference in place, and cannot
            be trained or saved afterwards.
        config: its configuration; the sections `test`, `proposals` and `runtime` are used.
        class_names: of its C classes.
        device: None takes a GPU if PyTorch sees one, else the CPU.

    Raises:
        ValueError: the GPU lacks `runtime.precision`.
    """

    def __init__(
        self,
        model: CIMNet,
        config: Config,
        class_names: Sequence[str],
        device: torch.device | str | None = None,
    ) -> None:
        device = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.config = config
        self.class_names = tuple(class_names)
        self._detector = build_detector(config, model.to(device), range(len(class_names)), device)
        self.model = self._detector.model

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        step: int | None = None,
        config: str | Path | Config | None = None,
        class_names: Sequence[str] | None = None,
        device: torch.device | str | None = None,
    ) -> CIM:
        """Loads a run folder, or a checkpoint file of this project or a published one.

        Args:
            path: a run folder (its newest checkpoint is loaded) or a .pth file.
            step: another checkpoint of the run.
            config: None takes the configuration of the run or checkpoint. Published checkpoints
                have none: give `configs/resnet50_voc.yaml`.
            class_names: None takes those of the checkpoint, or else `class 0`, `class 1`, ...

        Raises:
            FileNotFoundError: there is no such run or checkpoint.
            CheckpointError, ConfigError: it cannot be read, or does not fit the configuration.
        """
        path = checkpoint = Path(path)
        if path.is_dir():
            checkpoint = find_checkpoint(path, step)
        elif step is not None:
            raise ValueError(f"{path}: step goes with the folder of a run")
        state = load_checkpoint(checkpoint)
        count = _num_classes(state["model"], checkpoint)
        if not isinstance(config, Config):
            config = _config(config, path, state)
        names = class_names if class_names is not None else state.get("class_names")
        names = [f"class {number}" for number in range(count)] if names is None else list(names)
        if len(names) != count:
            raise ValueError(f"{checkpoint}: {len(names)} class names for its {count} classes")
        model = build_model(config.model, count, pretrained=False)
        load_model(model, state["model"], checkpoint)
        return cls(model, config, names, device)

    def propose(self, image: ImageLike) -> Proposals:
        """Makes mask proposals of an image as configured."""
        return proposals_from_regions(self._generate(as_rgb(image)))

    @cached_property
    def _generate(self) -> Generate:
        """Opened when it is needed first."""
        return open_generator(self.config, str(self._detector.device))

    def predict(
        self,
        image: ImageLike,
        proposals: Proposals | Regions | np.ndarray | None = None,
        image_labels: Sequence[str | int] | None = None,
        *,
        score_thresh: float | None = None,
        tta: bool = True,
    ) -> Prediction:
        """Finds the instances in an image, as tools/test_net.py does.

        Args:
            image: see ImageLike. Files are turned upright by their EXIF orientation.
            proposals: candidate masks, (P, H, W) bool or in a form of lib.structures; None makes
                them.
            image_labels: names or numbers of the classes known to be in the image; all instances
                of these alone are kept (for pseudo labels). None looks for all classes and keeps
                the best `test.detections_per_image`.
            score_thresh: instances need a score above this; None takes `test.score_thresh`, which
                keeps nearly everything.
            tta: uses all scales and flips of the configuration; False makes one pass, at the
                largest scale.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: the image is damaged or of another type; proposals of another size, or an
                empty one; an unknown class.
        """
        pixels = as_rgb(image)
        proposals = self.propose(pixels) if proposals is None else _as_proposals(proposals, pixels)
        detector = self._detector
        if score_thresh is not None:
            detector = replace(detector, score_thresh=score_thresh)
        if image_labels is not None:
            detector = replace(detector, max_detections=None, only_image_labels=True)
        if not tta:
            detector = replace(detector, scales=(max(detector.scales),), flips=("none",))
        labels = self._image_labels(image_labels or ())
        record = ImageRecord(0, "image", *pixels.shape[:2], labels)
        read = ReadImage(record, pixels, proposals, no_clusters(len(proposals)))
        passes = [CimDataset.view(read, s, f) for s in detector.scales for f in detector.flips]
        found = detector.select(read, passes)
        masks = proposals.regions.masks(found.proposal_idx)
        return Prediction(
            image=pixels,
            boxes=mask_boxes(torch.from_numpy(masks)).numpy(),
            labels=found.class_idx,
            scores=found.scores,
            masks=masks,
            proposal_idx=found.proposal_idx,
            class_names=self.class_names,
        )

    def _image_labels(self, wanted: Sequence[str | int]) -> np.ndarray:
        """(C,) float32 in {0, 1}."""
        labels = np.zeros(len(self.class_names), np.float32)
        for one in wanted:
            if isinstance(one, str) and one in self.class_names:
                labels[self.class_names.index(one)] = 1
            elif not isinstance(one, str) and 0 <= one < len(labels):
                labels[one] = 1
            else:
                raise ValueError(f"no class {one!r}; there are {', '.join(self.class_names)}")
        return labels


def as_rgb(image: ImageLike) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels of an image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or an array of another type or shape.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"a PIL image of mode {image.mode} has more than 8 bits; scale its values to "
                "0..255 and convert it to RGB"
            )
        return np.array(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected a path, a PIL image or an array, got {type(image).__name__}")
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"an array of {image.dtype} and shape {image.shape}; expected (H, W, 3) or (H, W) "
            "uint8 in RGB order"
        )
    return np.ascontiguousarray(image)


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise ImportError("supervision is missing; pip install -e .[supervision]") from error
    return supervision


def _as_proposals(proposals: Proposals | Regions | np.ndarray, pixels: np.ndarray) -> Proposals:
    if isinstance(proposals, Regions):
        proposals = proposals_from_regions(proposals)
    elif not isinstance(proposals, Proposals):
        masks = np.asarray(proposals)
        if masks.shape[1:] != pixels.shape[:2]:
            raise ValueError(
                f"proposals of shape {masks.shape} for an image of {pixels.shape[0]}x"
                f"{pixels.shape[1]} (height x width); expected (P, H, W)"
            )
        proposals = proposals_from_masks(masks)
    if proposals.regions.size != pixels.shape[:2]:
        raise ValueError(
            f"proposals of an image of {proposals.regions.size}, this one is {pixels.shape[:2]} "
            "(height, width)"
        )
    empty = np.flatnonzero(mask_areas(proposals.regions) == 0)
    if len(empty):
        raise ValueError(f"{len(empty)} proposals are empty, the first is number {empty[0]}")
    return proposals


def _config(given: str | Path | None, path: Path, state: Mapping[str, Any]) -> Config:
    if given is not None:
        return load_config(given)
    if path.is_dir():
        return load_config(path / "config.yaml")
    if "config" not in state:
        raise ConfigError(
            f"{path}: it does not say what it was trained with; give config=, for example "
            "configs/resnet50_voc.yaml"
        )
    return config_from(state["config"], str(path))


def _num_classes(model: Mapping[str, torch.Tensor], source: Path) -> int:
    head = model.get("cls_iou_model.classifier.bias")
    if head is None:
        raise CheckpointError(f"{source}: has no cls_iou_model.*; it is no checkpoint of CIM")
    return len(head) - 1
