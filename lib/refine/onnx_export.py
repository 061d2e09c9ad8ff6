"""A trained Mask R-CNN as one ONNX file, for programs without PyTorch (docs/export.md)."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, nms, roi_align

from lib.config import RefineConfig
from lib.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from lib.files import atomic_file

INPUTS = ("image", "size")
OUTPUTS = ("boxes", "labels", "scores", "masks")


class TraceableMaskRCNN(nn.Module):
    """Inference of torchvision's Mask R-CNN on one image, as a graph without Python in it.

    torchvision's own compares sizes that depend on the data, which an exporter cannot follow.

    Args:
        model: from `build_mask_rcnn`; its weights and thresholds are used.
        mask_thresh: a pixel belongs to a mask above this probability.
    """

    def __init__(self, model: MaskRCNN, mask_thresh: float) -> None:
        super().__init__()
        self.model = model
        self.mask_thresh = mask_thresh

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Finds the instances in an image, best first.

        Args:
            image: (3, h, w) float32, scaled and normalised.
            size: (2,) int64, the (height, width) that boxes and masks are to have, usually those
                of the image before it was scaled.

        Returns:
            boxes (K, 4) xyxy in pixels of `size`, labels (K,) in 0..C-1, scores (K,), and masks
            (K, height, width) bool; K may be 0.
        """
        heads = self.model.roi_heads
        shape = image.shape[1:]
        images, _ = self.model.transform([image])
        levels = list(self.model.backbone(images.tensors).values())
        rois = self._rois(levels, images.tensors.shape[2:], shape)
        logits, deltas = heads.box_predictor(
            heads.box_head(_pool(heads.box_roi_pool, levels, rois))
        )
        boxes, labels, scores = self._detections(logits, deltas, rois, shape)
        one_more = F.pad(boxes, (0, 0, 0, 1))  # onnxruntime has no convolution of nothing
        maps = heads.mask_head(_pool(heads.mask_roi_pool, levels, one_more))
        masks = heads.mask_predictor(maps)[:-1].sigmoid()
        masks = masks[torch.arange(masks.shape[0], device=masks.device), labels]  # (K, 28, 28)
        boxes = boxes * torch.stack([size[1] / shape[1], size[0] / shape[0]]).repeat(2)
        masks = paste_masks(masks, boxes, size[0].item(), size[1].item())
        return boxes, labels - 1, scores, masks > self.mask_thresh

    def _rois(self, levels: list[Tensor], padded: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The regions that the region proposal network suggests, (R, 4)."""
        rpn = self.model.rpn
        cells = rpn.anchor_generator.cell_anchors
        all_boxes, all_scores = [], []
        for level, logits, deltas, cell in zip(levels, *rpn.head(levels), cells, strict=True):
            count, (h, w) = cell.shape[0], level.shape[2:]
            # Of the coarsest level the stride is that of the rounded sizes, as in torchvision.
            y = torch.arange(h, device=level.device)[:, None].expand(h, w) * (padded[0] // h)
            x = torch.arange(w, device=level.device)[None].expand(h, w) * (padded[1] // w)
            corners = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4)
            anchors = (corners + cell).reshape(-1, 4)
            score = logits[0].permute(1, 2, 0).reshape(-1)
            deltas = deltas[0].reshape(count, 4, h, w).permute(2, 3, 0, 1).reshape(-1, 4)
            score, order = score.topk(torch.sym_min(rpn.pre_nms_top_n(), score.shape[0]))
            boxes = rpn.box_coder.decode_single(deltas[order], anchors[order])
            boxes = clip_boxes_to_image(boxes, shape)
            kept = _is_large(boxes, rpn.min_size).nonzero()[:, 0]
            boxes, score = boxes[kept], score[kept].sigmoid()
            kept = nms(boxes, score, rpn.nms_thresh)
            all_boxes.append(boxes[kept])
            all_scores.append(score[kept])
        best = torch.cat(all_scores).argsort(descending=True)[: rpn.post_nms_top_n()]
        return torch.cat(all_boxes)[best]

    def _detections(
        self, logits: Tensor, deltas: Tensor, rois: Tensor, shape: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (K, 4) in the scaled image, labels (K,) from 1 on, and scores (K,)."""
        heads = self.model.roi_heads
        columns = logits.shape[1]
        scores = logits.softmax(dim=1)[:, 1:].reshape(-1)
        boxes = heads.box_coder.decode_single(deltas, rois).reshape(-1, columns, 4)[:, 1:]
        boxes = clip_boxes_to_image(boxes.reshape(-1, 4), shape)
        labels = torch.arange(1, columns, device=logits.device)
        labels = labels.expand(logits.shape[0], -1).reshape(-1)
        kept = ((scores > heads.score_thresh) & _is_large(boxes, 1e-2)).nonzero()[:, 0]
        boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
        # Moved apart by class, so that no two classes overlap.
        apart = labels[:, None] * (F.pad(boxes, (0, 0, 0, 1)).max() + 1)
        kept = nms(boxes + apart, scores, heads.nms_thresh)[: heads.detections_per_img]
        return boxes[kept], labels[kept], scores[kept]


def _is_large(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(dim=1)


def _pool(pool: MultiScaleRoIAlign, levels: list[Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign of every box from the pyramid level that suits its size."""
    options = {"output_size": pool.output_size, "sampling_ratio": pool.sampling_ratio}
    rois = F.pad(boxes, (1, 0))  # (R, 5), all in image 0
    if len(pool.scales) == 1:
        return roi_align(levels[0], rois, spatial_scale=pool.scales[0], **options)
    level_of = pool.map_levels([boxes])
    parts, places = [], []
    for number, scale in enumerate(pool.scales):
        places.append((level_of == number).nonzero()[:, 0])
        parts.append(roi_align(levels[number], rois[places[-1]], spatial_scale=scale, **options))
    return torch.cat(parts)[torch.cat(places).argsort()]


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Draws small masks into their boxes, like torchvision's `paste_masks_in_image`.

    Bilinear interpolation is linear in rows and in columns: a product of three matrices.

    Args:
        masks: (K, n, n) probabilities.
        boxes: (K, 4) xyxy.

    Returns:
        (K, height, width), 0 outside the boxes.
    """
    masks = F.pad(masks, (1, 1, 1, 1))
    cells = masks.shape[-1]
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half * (cells / (cells - 2))
    low = (center - half).long()  # (K, 2), x and y
    extent = ((center + half).long() - low + 1).clamp(min=1)
    columns = _interpolation(low[:, :1], extent[:, :1], width, cells)
    rows = _interpolation(low[:, 1:], extent[:, 1:], height, cells)
    return rows @ masks @ columns.transpose(1, 2)


def _interpolation(low: Tensor, extent: Tensor, length: int, cells: int) -> Tensor:
    """(K, length, cells) weights of the cells in every pixel, 0 outside [low, low + extent)."""
    pixel = torch.arange(length, device=low.device) - low
    position = ((pixel + 0.5) * (cells / extent) - 0.5).clamp(0, cells - 1)
    distance = (position[:, :, None] - torch.arange(cells, device=low.device)).abs()
    inside = (pixel >= 0) & (pixel < extent)
    return (1 - distance).clamp(min=0) * inside[:, :, None]


def pad_statically(network: nn.Module) -> nn.Module:
    """A copy in which TensorFlow's `same` convolutions of timm have a fixed padding.

    Theirs depends on the size of the image, but only where the stride does not divide it: images
    are padded to multiples of all strides before.
    """
    from timm.layers.conv2d_same import Conv2dSame  # takes seconds

    network = copy.deepcopy(network)
    for parent in [*network.modules()]:
        for name, conv in [*parent.named_children()]:
            if type(conv) is Conv2dSame:
                high, wide = (
                    max((size - 1) * step - stride + 1, 0)
                    for size, stride, step in zip(
                        conv.kernel_size, conv.stride, conv.dilation, strict=True
                    )
                )
                padding = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
                conv.__class__ = nn.Conv2d
                setattr(parent, name, nn.Sequential(nn.ZeroPad2d(padding), conv))
    return network


def write_onnx(
    path: Path,
    model: MaskRCNN,
    settings: RefineConfig,
    class_names: Sequence[str],
    made_from: Mapping[str, Any],
) -> None:
    """Writes a Mask R-CNN as ONNX; inputs and outputs are those of TraceableMaskRCNN.

    Height and width of the image are dynamic. The file's metadata are JSON: `class_names`,
    `mean` and `std` (of RGB in 0..1), `long_side` (of the scaled image) and `made_from`.

    Raises:
        ValueError: the packages of the extra `export` are missing, or the network cannot be
            exported.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing; pip install -e .[export]")
    model = pad_statically(model).eval().cpu()
    network = TraceableMaskRCNN(model, settings.test.mask_thresh).eval()
    about = {
        "class_names": [*class_names],
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "long_side": settings.input.test_scale,
        "made_from": made_from,
    }
    example = (torch.zeros(3, 70, 100), torch.tensor([140, 200]))
    sides = {1: torch.export.Dim("height", min=1), 2: torch.export.Dim("width", min=1)}
    try:
        with torch.no_grad():
            network(*example)  # a backbone may keep what it computes once
            program = torch.onnx.export(
                network,
                example,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes=(sides, None),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"{settings.model.backbone} {settings.model.backbone_args}: PyTorch cannot export "
            f"this backbone to ONNX: {error}"
        ) from error
    content = program.model_proto
    for node in content.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine
    for key, value in about.items():
        content.metadata_props.add(key=key, value=json.dumps(value))
    with atomic_file(path) as file:
        file.write(content.SerializeToString())
