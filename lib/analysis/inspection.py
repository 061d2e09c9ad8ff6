"""The steps of the method on one image, for looking at them; training does not use this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from lib.analysis.mining import mine_image, training_view
from lib.config import Config, load_config
from lib.data.coco import CocoImages, ImageRecord
from lib.data.images import read_image
from lib.data.loader import CimDataset, ReadImage, no_clusters
from lib.data.transforms import normalise
from lib.engine.build import build_detector, trained_model
from lib.engine.checkpoint import load_checkpoint
from lib.engine.inference import Detector
from lib.engine.runs import find_checkpoint
from lib.prm.clusters import agpl_clusters
from lib.prm.network import PeakResponseNet, build_prm, load_prm
from lib.prm.peaks import Peaks, find_peaks, peak_response_maps, select_peaks
from lib.prm.prompts import open_generator
from lib.proposals.regions import proposals_from_regions
from lib.structures import Clusters, Detections, Instances, Proposals


@dataclass(frozen=True, eq=False)
class Inspection:
    """The steps of the method on one image; None where a step was not taken."""

    record: ImageRecord
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    proposals: Proposals
    responses: np.ndarray | None = None
    """(C, h, w) float32, response maps of the PRM over the whole image."""
    peaks: Peaks | None = None
    """The peaks that clusters are grouped around, of the classes of the image."""
    peak_maps: np.ndarray | None = None
    """(K, h', w') float32 in [0, 1], the pixels that each peak responds to."""
    clusters: Clusters | None = None
    instances: Instances | None = None
    """S stages, before anti-noise sampling."""
    detections: Detections | None = None
    """Of all classes, also those that the image is not labelled with."""


@dataclass(frozen=True)
class Inspector:
    """The networks of a run, with the configuration they were trained with."""

    config: Config
    class_names: list[str]
    detector: Detector
    prm: PeakResponseNet | None
    device: str

    def __call__(
        self, read: ReadImage, with_peak_maps: bool = False, with_detections: bool = False
    ) -> Inspection:
        """Takes the steps on one image.

        Instances are mined at the middle one of the training scales. Clusters are made from the
        PRM's peaks, or taken from `read` where there is no PRM.

        Args:
            read: the image, its proposals (at least one), and its labels in `read.record`.
            with_peak_maps: also traces every peak back to the image, which takes long.
            with_detections: also detects, with all passes over the image.
        """
        steps: dict = {}
        if self.prm is not None:
            steps |= self._respond(read, with_peak_maps)
            steps["clusters"] = agpl_clusters(read.proposals.regions, steps["peaks"])
        elif (read.clusters.number > 0).any():
            steps["clusters"] = read.clusters
        sample = training_view(read, self.config).to(self.device)
        mined = mine_image(self.detector.model, self.config.mining, sample).instances
        if mined is not None:
            steps["instances"] = Instances(mined.class_idx.cpu(), mined.weight.cpu())
        if with_detections:
            detector = self.detector
            scales, flips = detector.scales, detector.flips
            passes = [CimDataset.view(read, scale, flip) for scale in scales for flip in flips]
            steps["detections"] = detector.select(read, passes)
        return Inspection(read.record, read.image, read.proposals, **steps)

    def _respond(self, read: ReadImage, with_peak_maps: bool) -> dict:
        side = self.config.prm.image_size
        squeezed = cv2.resize(read.image, (side, side), interpolation=cv2.INTER_LINEAR)
        image = normalise(squeezed)[None].to(self.device)
        with torch.no_grad():
            response = self.prm(image)[0]
        peaks = select_peaks(find_peaks(response), read.record.image_labels, self.config.prm)
        found = {"responses": response.cpu().numpy(), "peaks": peaks}
        if with_peak_maps:
            maps = peak_response_maps(self.prm, image, peaks).cpu()
            highest = maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
            found["peak_maps"] = (maps / highest).numpy()
        return found


def inspect(read: ReadImage, inspector: Inspector | None) -> Inspection:
    """The steps on one image; without an inspector, only proposals and stored clusters."""
    if inspector is not None:
        return inspector(read)
    stored = read.clusters if (read.clusters.number > 0).any() else None
    return Inspection(read.record, read.image, read.proposals, clusters=stored)


def open_inspector(
    run: Path,
    data_root: Path,
    coco: CocoImages | None = None,
    prm_file: Path | None = None,
    device: str = "cpu",
) -> Inspector:
    """Loads the newest checkpoint of a run and the PRM of its training data.

    Args:
        data_root: folder of the PRM; without a PRM the steps that need it are left out.
        coco: the classes; None takes those named in the checkpoint.
        prm_file: another PRM, which must exist.

    Raises:
        FileNotFoundError: the run has no checkpoint, or `prm_file` does not exist.
        ValueError: networks and classes do not fit each other.
    """
    checkpoint = find_checkpoint(run)
    config = load_config(run / "config.yaml")
    state = load_checkpoint(checkpoint)
    if coco is not None:
        class_names, category_ids = coco.class_names, coco.category_ids
    elif class_names := list(state.get("class_names", ())):
        category_ids = range(1, len(class_names) + 1)
    else:
        raise ValueError(f"{checkpoint}: does not name its classes; name a data set")
    model = trained_model(config, state, checkpoint, class_names).to(device)
    if prm_file is None:
        prm_file = data_root / "prm" / f"{state.get('dataset', '')}.pth"
        prm_file = prm_file if prm_file.is_file() else None
    prm = None
    if prm_file is not None:
        prm = build_prm(config.prm, len(class_names), weights="random")
        load_prm(prm, prm_file)
        prm.to(device).eval()
    detector = build_detector(config, model, category_ids, device)
    return Inspector(config, class_names, detector, prm, device)


def read_picture(
    path: Path, present: Sequence[str], inspector: Inspector, proposals: Proposals | None = None
) -> ReadImage:
    """Reads any picture for an `Inspector`.

    Args:
        present: names of the classes in the picture.
        proposals: of this picture; None makes them as configured.

    Raises:
        FileNotFoundError, ValueError: the picture cannot be read, or a class is unknown.
    """
    names = inspector.class_names
    if unknown := [name for name in present if name not in names]:
        raise ValueError(
            f"the network does not know {', '.join(unknown)}; it knows {', '.join(names)}"
        )
    image = read_image(path)
    if proposals is None:
        proposals = make_proposals(image, inspector.config, inspector.device)
    labels = np.isin(names, list(present)).astype(np.float32)
    record = ImageRecord(0, path.name, *image.shape[:2], labels)
    return ReadImage(record, image, proposals, no_clusters(len(proposals)))


def make_proposals(image: np.ndarray, config: Config, device: str = "cpu") -> Proposals:
    """Proposals of an (H, W, 3) uint8 RGB image as configured."""
    return proposals_from_regions(open_generator(config, device)(image))
