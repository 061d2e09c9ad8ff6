"""Draws pipeline.png: every step of the method, as it came out on one image of the embedded data.

    python docs/images/pipeline.py                 after scripts/quickstart.sh
    python docs/images/pipeline.py --image train_00030.png --chromium /usr/bin/chromium

The pictures are made by lib/, the page around them is SVG, and Chromium makes the PNG of it.
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import torch
from PIL import Image

from lib.config import load_config
from lib.data.catalog import catalog
from lib.data.coco import CocoImages
from lib.data.loader import CimDataset
from lib.engine.build import trained_model
from lib.engine.checkpoint import load_checkpoint
from lib.engine.inference import read_passes
from lib.engine.runs import find_checkpoint
from lib.evaluation.detections import select_detections
from lib.fast.network import FastCIMNet
from lib.modeling.heads import teachers
from lib.modeling.scoring import score_passes
from lib.prm.clusters import ClusterStore
from lib.prm.images import SquareImages
from lib.prm.network import build_prm, load_prm
from lib.prm.peaks import Peaks, find_peaks, select_peaks
from lib.proposals.overlaps import overlaps
from lib.proposals.store import ProposalStore
from lib.structures import Clusters, Regions
from lib.visualization.draw import color_of, draw_instances, draw_proposals, enlarge

WIDTH, HEIGHT, SIDE = 1322, 560, 124
INK, PALE, LINE = "#1f2933", "#52606d", "#7b8794"
BLUE, GREEN, ORANGE = "#eef4fb", "#eaf6ec", "#fdf3e3"
DRAWN = 256
"""Pixels of a picture before it is put on the page."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("Outputs/quickstart"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--image", default="train_00030.png")
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    args = parser.parse_args()
    svg = draw_page(*pictures(args.run, args.data_root, args.image))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pipeline.html"
        source.write_text(f"<!doctype html><body style='margin:0'>{svg}")
        size = f"--window-size={WIDTH},{HEIGHT}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        shot = f"--screenshot={Path(folder) / 'shot.png'}"
        command = [args.chromium, *options, "--force-device-scale-factor=1.5", shot, str(source)]
        subprocess.run(command, check=True, capture_output=True)
        drawn = Image.open(f"{folder}/shot.png").convert("RGB").quantize(256)
        drawn.save(args.output, optimize=True)


def pictures(run: Path, root: Path, name: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """(256, 256, 3) RGB of every step on the image called `name`, and its image-level labels."""
    dataset = catalog(root)["shapes_train"]
    config = load_config(run / "config.yaml")
    coco = CocoImages(dataset.json)
    index = [record.file_name for record in coco.images].index(name)
    record = coco.images[index]
    proposals, clusters = ProposalStore(dataset.proposals), ClusterStore(dataset.clusters)
    data = CimDataset(coco, dataset.images, proposals, clusters)
    regions = proposals.load(name).regions
    image = cv2.imread(str(dataset.images / name))[..., ::-1].copy()
    made = {
        "image": enlarge(image, DRAWN),
        "proposals": draw_proposals(image, regions, range(25), DRAWN),
        "clusters": _draw_clusters(image, regions, clusters.load(name, regions.num_proposals)),
    }

    prm = build_prm(config.prm, coco.num_classes, weights="random")
    load_prm(prm, dataset.prm)
    square = SquareImages([record], dataset.images, config.prm.image_size).batch([0], ["none"])
    with torch.no_grad():
        response = prm.eval()(square)[0]
    made["peaks"] = _draw_peaks(
        image, response, select_peaks(find_peaks(response), record.image_labels, config.prm)
    )

    checkpoint = find_checkpoint(run)
    model = trained_model(config, load_checkpoint(checkpoint), checkpoint, coco.class_names)
    read, passes = read_passes(data, index, config.test.scales, config.test.flips)
    with torch.no_grad():
        scores = model(passes[0].image[None], passes[0].boxes, passes[0].roi_masks)
    cls_prob, integrity = teachers(scores)
    iou, containment = overlaps(
        torch.from_numpy(regions.membership), torch.from_numpy(regions.areas)
    )
    present = torch.from_numpy(record.image_labels).nonzero()[:, 0]
    # MIST's instances are its seeds; with all integrity 1 they are chosen as CIM's.
    seeds = replace(config.mining, labels="mist").mine(
        cls_prob, torch.ones_like(integrity), present, iou, containment
    )
    instances = config.mining.mine(cls_prob, integrity, present, iou, containment)
    for what, mined in (("seeds", seeds), ("instances", instances)):
        for stage, weight in enumerate(mined.weight):
            chosen = (weight > 0.1 * weight.max()).numpy()  # the others weigh next to nothing
            masks = regions.membership[chosen][:, regions.labels]
            of_class = mined.class_idx[stage][chosen].tolist()
            made[f"{what} {stage}"] = _draw(image, masks, of_class)

    test = config.test
    detections = select_detections(
        score_passes(FastCIMNet(model), passes, "cpu").numpy(),
        read.proposals.boxes,
        0.3,
        test.nms_thresh,
        20,
    )
    masks = regions.membership[detections.proposal_idx][:, regions.labels]
    made["detections"] = _draw(image, masks, detections.class_idx)
    return made, [coco.class_names[c] for c in present.tolist()]


def _draw(image: np.ndarray, masks: np.ndarray, class_idx: Sequence[int]) -> np.ndarray:
    return draw_instances(image, masks, class_idx, class_names=[""] * 100, long_side=DRAWN)


def _draw_clusters(image: np.ndarray, regions: Regions, clusters: Clusters) -> np.ndarray:
    """The proposals of every foreground cluster, in the colour of its class."""
    canvas = enlarge(image, DRAWN)
    for i in np.flatnonzero(clusters.column > 0):
        canvas = draw_instances(
            canvas,
            _large(regions.membership[i][regions.labels], canvas)[None],
            [clusters.column[i] - 1],
            class_names=[""] * 100,
            long_side=DRAWN,
        )
    return canvas


def _draw_peaks(image: np.ndarray, response: torch.Tensor, peaks: Peaks) -> np.ndarray:
    """Where the classes of the image respond, and the peaks that are used."""
    canvas = enlarge(image, DRAWN).astype(np.float32)
    for c in np.unique(peaks.class_idx):
        heat = cv2.resize(response[c].numpy(), canvas.shape[1::-1])
        heat = np.clip(heat / heat.max(), 0, 1)[..., None]
        canvas = canvas * (1 - 0.75 * heat) + 0.75 * heat * np.array(color_of(int(c)))
    canvas = canvas.astype(np.uint8).copy()
    for c, y, x in zip(peaks.class_idx, peaks.y, peaks.x, strict=True):
        place = [
            int((v + 0.5) * n / m)
            for v, n, m in zip((x, y), canvas.shape[1::-1], peaks.size[::-1], strict=True)
        ]
        cv2.circle(canvas, place, 9, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, place, 6, color_of(int(c)), -1, cv2.LINE_AA)
    return canvas


def _large(mask: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), canvas.shape[1::-1]) > 0


class Page:
    """An SVG being written."""

    def __init__(self, pictures: dict[str, np.ndarray]) -> None:
        self.pictures = pictures
        self.parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']

    def text(self, x: float, y: float, words: str, size: float = 12, style: str = "") -> None:
        """Centred on x; `style` holds the letters b(old), p(ale), m(onospace), l(eft)."""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{PALE if "p" in style else INK}" '
            f'font-weight="{"bold" if "b" in style else "normal"}" '
            f'text-anchor="{"start" if "l" in style else "middle"}" '
            f'font-family="{"monospace" if "m" in style else "sans-serif"}">{escape(words)}</text>'
        )

    def picture(self, x: float, y: float, name: str, title: str, below: str) -> None:
        packed = cv2.imencode(".png", self.pictures[name][..., ::-1])[1].tobytes()
        place = f'x="{x}" y="{y}" width="{SIDE}" height="{SIDE}"'
        self.parts.append(
            f'<image {place} href="data:image/png;base64,{base64.b64encode(packed).decode()}"/>'
            f'<rect {place} fill="none" stroke="{LINE}"/>'
        )
        self.text(x + SIDE / 2, y + SIDE + 16, title, 13, "b")
        self.text(x + SIDE / 2, y + SIDE + 31, below, 11, "pm" if "/" in below else "p")

    def box(self, x: float, y: float, width: float, title: str, below: str, fill: str) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="50" rx="7" fill="{fill}" '
            f'stroke="{LINE}"/>'
        )
        self.text(x + width / 2, y + 21, title, 13, "b")
        self.text(x + width / 2, y + 39, below, 11, "pm" if "/" in below else "p")

    def arrow(self, path: str) -> None:
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.8" '
            'marker-end="url(#head)"/>'
        )

    def svg(self) -> str:
        head = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>'
        )
        size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        body = "".join(self.parts)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{head}{body}</svg>'


def draw_page(made: dict[str, np.ndarray], labels: list[str]) -> str:
    """What stands where, and what goes where."""
    page = Page(made)
    page.text(24, 32, "Before training", 17, "bl")
    page.picture(24, 200, "image", "image", "lib/data/")
    page.text(86, 376, "image-level labels:", 12, "p")
    page.text(86, 394, ", ".join(labels), 13, "b")
    page.picture(214, 62, "proposals", "proposals", "lib/proposals/")
    page.picture(214, 250, "peaks", "peaks (PRM)", "lib/prm/peaks.py")
    page.picture(404, 250, "clusters", "clusters (AGPL)", "lib/prm/clusters.py")
    page.arrow("M148 240 C186 230 176 130 210 124")
    page.arrow("M148 290 C178 290 180 312 210 312")
    page.arrow("M338 312 L400 312")
    page.arrow("M338 170 C375 180 400 205 428 246")

    page.text(404, 32, "Network", 17, "bl")
    page.box(400, 62, 150, "backbone", "modeling/backbones/", BLUE)
    page.box(400, 136, 150, "RoIAlign + MaskFuse", "modeling/mask_fuse.py", BLUE)
    page.arrow("M475 112 L475 132")
    page.arrow("M338 124 C368 124 368 160 396 160")

    page.text(590, 32, "Complete instances mining: every branch teaches the next", 17, "bl")
    page.arrow("M550 161 C576 161 562 87 586 87")
    page.box(590, 62, SIDE, "MIL branch", "class x detection", GREEN)
    page.arrow("M528 330 C600 330 640 300 650 118")
    page.text(652, 352, "trained on the image-", 12, "p")
    page.text(652, 368, "level labels and, by", 12, "p")
    page.text(652, 384, "cluster, on the means", 12, "p")
    page.text(652, 400, "of its proposals", 12, "p")
    page.text(652, 424, "modeling/losses.py", 11, "pm")
    page.text(652, 439, "modeling/heads.py", 11, "pm")
    for stage in range(3):
        x = 736 + 146 * stage
        page.box(x, 62, SIDE, f"stage {stage + 1}", "class, integrity", ORANGE)
        page.picture(x, 158, f"instances {stage}", "instances", "most complete with seed")
        page.picture(x, 358, f"seeds {stage}", "seeds", "of the branch before")
        page.arrow(f"M{x + 62} 158 L{x + 62} 116")
        page.arrow(f"M{x + 62} 358 L{x + 62} 338")
        gap = x - 11
        page.arrow(f"M{gap - 18} 112 Q{gap} 118 {gap} 150 L{gap} 404 Q{gap} 420 {x - 2} 420")

    page.text(1174, 32, "Inference", 17, "bl")
    page.arrow("M1152 87 L1170 87")
    page.box(1174, 62, SIDE, "mean of stages", "and of ten views", BLUE)
    page.arrow("M1236 112 L1236 154")
    page.picture(1174, 158, "detections", "detections", "lib/evaluation/")
    page.arrow("M1236 338 L1236 356")
    page.box(1174, 358, SIDE, "pseudo labels", "a COCO json", BLUE)
    page.arrow("M1236 408 L1236 430")
    page.box(1174, 432, SIDE, "Mask R-CNN", "CIM+", BLUE)
    return page.svg()


if __name__ == "__main__":
    main()
