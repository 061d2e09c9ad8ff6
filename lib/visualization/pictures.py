"""Instances drawn over their images, one PNG file per image, and an overview of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.data.coco import CocoImages, ImageRecord
from lib.data.images import read_record
from lib.proposals.rle import masks_of
from lib.visualization.draw import draw_instances
from lib.visualization.panels import contact_sheet, save_png, side_by_side


def draw_pictures(
    folder: Path,
    records: Sequence[ImageRecord],
    images: Path,
    coco: CocoImages,
    layers: Sequence[tuple[str, Mapping[int, list[dict[str, Any]]]]],
    suffix: str,
    color_by: str,
    on_sheet: int,
) -> int:
    """Draws every image, its layers side by side, to `<folder>/<file name><suffix>.png`.

    Args:
        images: the folder of the images.
        layers: (title, entries as from `coco_files.by_image`).
        on_sheet: pictures on `<folder>/overview.png`, which is written for two or more.

    Returns:
        The number of instances drawn of the last layer.
    """
    sheet, instances = [], 0
    for record in tqdm(records, desc="drawing", unit="image"):
        image = read_record(record, images)
        panels = [
            (title, _draw(image, entries.get(record.image_id, []), coco, color_by))
            for title, entries in layers
        ]
        picture = side_by_side(panels) if len(panels) > 1 else panels[0][1]
        path = folder / PurePath(record.file_name)
        save_png(path.with_name(f"{path.stem}{suffix}.png"), picture)
        instances += len(layers[-1][1].get(record.image_id, ()))
        if len(sheet) < on_sheet:
            sheet.append(picture)
    if len(sheet) > 1:
        columns = 2 if len(layers) > 1 else 4
        save_png(folder / "overview.png", contact_sheet(sheet, columns, 1600 // columns))
    return instances


def _draw(
    image: np.ndarray, entries: list[dict[str, Any]], coco: CocoImages, color_by: str
) -> np.ndarray:
    scores = [entry["score"] for entry in entries]
    return draw_instances(
        image,
        masks_of(entries, image.shape[:2]),
        [coco.category_ids.index(entry["category_id"]) for entry in entries],
        None if None in scores else scores,
        coco.class_names,
        color_by,
    )
