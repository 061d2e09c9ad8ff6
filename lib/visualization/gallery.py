"""A gallery of results as a folder of plain files: index.html opens in a browser, without a server.

The page reads its data from scripts (browsers let a page read no other files from disk):
data/overview.js has names and scores of all images, data/chunk-<n>.js the outlines of the
instances on 50 images, data/details-<n>.js the steps of the method on one image. The browser loads
the last two when they are looked at, so that thousands of images open at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from lib.data.coco import ImageRecord
from lib.data.images import read_image
from lib.evaluation.coco_eval import percent
from lib.files import atomic_folder, write_text
from lib.parallel import for_each
from lib.proposals import rle
from lib.visualization.draw import color_of
from lib.visualization.outlines import mask_outlines, tolerance_for

CHUNK = 50
"""Images whose outlines share a file."""
LONG_SIDE = 1280
"""Pixels; larger images are shrunk to this."""
THUMB_SIDE = 320
"""Pixels; smaller images are their own thumbnails."""
_OVERVIEW = Path("data/overview.js")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Layer:
    """A kind of items that can be shown on the images."""

    title: str
    one: str
    """Name of a single item."""
    scored: bool = False
    """The score filter applies."""
    detail: bool = False
    """Only some images have it, in their details."""


LAYERS = {
    "detections": Layer("Detections", "detection", scored=True),
    "pseudo_labels": Layer("Pseudo labels", "pseudo label", scored=True),
    "ground_truth": Layer("Ground truth", "object"),
}
"""Layers of all images; details have layers of their own."""


@dataclass(frozen=True)
class Instance:
    """A mask as the page shows it."""

    class_idx: int
    segmentation: dict[str, Any]
    """Compressed RLE."""
    score: float | None = None
    hit: bool | None = None
    """Whether a detection hits an object, or an object is found; None if not known."""


@dataclass(frozen=True)
class Picture:
    """One image of the gallery."""

    record: ImageRecord
    path: Path
    layers: Mapping[str, Sequence[Instance]]
    """By name of the layer, best first."""
    ap: float | None = None
    objects: int | None = None
    found: int | None = None


@dataclass(frozen=True)
class Page:
    """Everything around the images."""

    title: str
    facts: Sequence[tuple[str, str]]
    """(name, value), under the title."""
    class_names: Sequence[str]
    layers: Mapping[str, Layer]
    """By name, in the order of the list; drawn in the opposite order."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """AP by name, in [0, 1]."""
    per_class: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """{class: {"objects": count, name of a metric: AP}}."""
    precision: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """(101,) precision over recall by class index."""
    iou_thresh: float = 0.5
    """For hits, the AP of single images, and `precision`."""
    history: Sequence[Mapping[str, float]] = ()
    """Numbers of a training by iteration."""


def write_gallery(
    folder: Path,
    page: Page,
    pictures: Sequence[Picture],
    details: Iterable[tuple[int, Mapping[str, Any]]] = (),
    jobs: int = 1,
) -> dict[str, str]:
    """Writes the gallery; an older one in the folder is replaced when the new one is complete.

    Args:
        details: (number of the picture, layers of details), see lib/analysis/details.py.
        jobs: processes; -1 is one per core.

    Returns:
        Why images are missing in the gallery, by file name.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: no image can be read.
    """
    with atomic_folder(Path(folder), "gallery", _OVERVIEW) as temporary:
        return _write(temporary, page, pictures, details, jobs)


def _write(
    folder: Path,
    page: Page,
    pictures: Sequence[Picture],
    details: Iterable[tuple[int, Mapping[str, Any]]],
    jobs: int,
) -> dict[str, str]:
    for path in (_HERE / "static").iterdir():
        shutil.copyfile(path, folder / path.name)
    for name in ("images", "thumbs", "data"):
        (folder / name).mkdir()
    tasks = ((p.record.file_name, (folder, number, p)) for number, p in enumerate(pictures))
    results, failures = for_each(_write_picture, tasks, len(pictures), jobs, "gallery")
    if not results:
        raise ValueError(f"none of the images can be shown: {next(iter(failures.values()), '')}")
    shown = [number for number, p in enumerate(pictures) if p.record.file_name in results]
    images, outlines = zip(*(results[pictures[n].record.file_name] for n in shown), strict=True)
    for start in range(0, len(shown), CHUNK):
        chunk = ",".join(outlines[start : start + CHUNK])
        _write_data(folder, f"chunk-{start // CHUNK}", f"[{chunk}]")
    details = {shown.index(number): content for number, content in details if number in shown}
    for place, content in details.items():
        _write_data(folder, f"details-{place}", json.dumps(content, allow_nan=False))
    overview = {
        "chunk": CHUNK,
        "iou": page.iou_thresh,
        "classes": [
            {"name": name, "color": _css_color(index), **page.per_class.get(name, {})}
            for index, name in enumerate(page.class_names)
        ],
        "instanceColors": [_css_color(index) for index in range(60)],
        "layers": [{"id": name, **asdict(layer)} for name, layer in page.layers.items()],
        "images": images,
        "detailed": sorted(details),
        "metrics": dict(page.metrics),
        "precision": {str(c): [round(float(p), 4) for p in v] for c, v in page.precision.items()},
        "history": _thinned(page.history),
    }
    _write_data(folder, _OVERVIEW.stem, json.dumps(overview, allow_nan=False))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("gallery.html")
    html = template.render(page=page, num_images=len(shown), percent=percent)
    write_text(folder / "index.html", html)
    return failures


def _write_data(folder: Path, name: str, json_text: str) -> None:
    write_text(folder / "data" / f"{name}.js", f'galleryData("{name}", {json_text});\n')


def _write_picture(folder: Path, number: int, picture: Picture) -> tuple[dict[str, Any], str]:
    """Copies an image to the gallery and draws its thumbnail.

    Returns:
        (its entry in the overview, outlines of its layers as JSON)
    """
    record = picture.record
    image = read_image(picture.path, record.size)
    is_large = max(image.shape[:2]) > THUMB_SIDE
    file = f"images/{number:06d}.{'jpg' if is_large else 'png'}"
    thumb = f"thumbs/{number:06d}.jpg" if is_large else file
    _save(folder / file, image, LONG_SIDE)
    if is_large:
        _save(folder / thumb, image, THUMB_SIDE)
    entry = {
        "name": record.file_name,
        "id": record.image_id,
        "image": file,
        "thumb": thumb,
        "width": record.width,
        "height": record.height,
        "ap": None if picture.ap is None else round(picture.ap, 4),
        "objects": picture.objects,
        "found": picture.found,
        "has": {  # for filters: class and score of every instance, in a flat list
            name: [n for i in layer for n in (i.class_idx, _rounded(i.score, 3, 1.0))]
            for name, layer in picture.layers.items()
        },
    }
    tolerance = tolerance_for(record.size)
    layers = {
        name: [
            [
                i.class_idx,
                _rounded(i.score, 4),
                None if i.hit is None else int(i.hit),
                mask_outlines(rle.rle_to_mask(i.segmentation), tolerance),
            ]
            for i in layer
        ]
        for name, layer in picture.layers.items()
    }
    return entry, json.dumps(layers, allow_nan=False, separators=(",", ":"))


def _rounded(score: float | None, digits: int, default: float | None = None) -> float | None:
    return default if score is None else round(score, digits)


def _save(path: Path, image: np.ndarray, limit: int) -> None:
    factor = limit / max(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    quality = [] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 88]
    done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    assert done
    path.write_bytes(encoded.tobytes())


def _thinned(history: Sequence[Mapping[str, float]], limit: int = 500) -> list[dict[str, float]]:
    """At most `limit` entries, each the mean of as many neighbours."""
    step = -(-len(history) // limit) or 1
    thinned = []
    for start in range(0, len(history), step):
        group = history[start : start + step]
        names = [name for name in group[0] if all(name in entry for entry in group)]
        means = {name: float(np.mean([entry[name] for entry in group])) for name in names}
        thinned.append({n: float(f"{v:.6g}") for n, v in means.items() if np.isfinite(v)})
    return thinned


def _css_color(index: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color_of(index))
