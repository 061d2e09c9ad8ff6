"""A gallery of results as a folder of plain files: index.html opens in a browser, without a server.

The page reads its data from scripts (a browser lets no page read files of the disk otherwise):
data/overview.js says a little of every image, data/chunk-<n>.js holds the outlines of the
instances on 50 images, data/details-<n>.js what the method sees on one image. The browser loads
the last two when they are looked at, so that thousands of images open at once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from lib.data.coco import ImageRecord
from lib.data.images import read_image
from lib.evaluation.coco_eval import percent
from lib.files import remove_parts, write_text
from lib.parallel import for_each
from lib.visualization.draw import color_of
from lib.visualization.outlines import rle_outlines, tolerance_for

CHUNK = 50
"""Images whose outlines lie in one file."""
LONG_SIDE = 1280
"""Pixels; larger images are shown at this size."""
THUMB_SIDE = 320
"""Pixels; images that are not larger are their own thumbnails."""
_OVERVIEW = Path("data/overview.js")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Layer:
    """Something that can be shown on the images."""

    title: str
    one: str
    """What one of its items is called."""
    scored: bool = False
    """Its scores are those that the filter is about."""
    detail: bool = False
    """Lies in the details of an image, which not all images have."""


LAYERS = {
    "detections": Layer("Detections", "detection", scored=True),
    "pseudo_labels": Layer("Pseudo labels", "pseudo label", scored=True),
    "ground_truth": Layer("Ground truth", "object"),
}
"""What is shown of all images; details have layers of their own."""


@dataclass(frozen=True)
class Instance:
    """A mask as the page shows it."""

    class_idx: int
    segmentation: dict[str, Any]
    """Compressed RLE."""
    score: float | None = None
    hit: bool | None = None
    """A detection that hits an object, or an object that is found; None is not known."""


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
    """What stands around the images."""

    title: str
    facts: Sequence[tuple[str, str]]
    """(what, value), under the title."""
    class_names: Sequence[str]
    layers: Mapping[str, Layer]
    """By name, in the order in which they are listed; drawn in the opposite order."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """AP by name, in [0, 1]."""
    per_class: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """{class: {"objects": count, name of a metric: AP}}."""
    precision: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """(101,) precision over recall by class index."""
    iou_thresh: float = 0.5
    """Of hits, of the AP of single images, and of `precision`."""
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
        details: (number of the picture, layers of details), see `details_of`; taken one by one.
        jobs: processes; -1 is one per core.

    Returns:
        Why an image is missing in the gallery, by file name.

    Raises:
        FileExistsError: the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / _OVERVIEW).is_file():
        raise FileExistsError(f"{folder}: holds files that are no gallery; name another --output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        failures = _write(temporary, page, pictures, details, jobs)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return failures


def _write(
    folder: Path,
    page: Page,
    pictures: Sequence[Picture],
    details: Iterable[tuple[int, Mapping[str, Any]]],
    jobs: int,
) -> dict[str, str]:
    for name in ("images", "thumbs", "data"):
        (folder / name).mkdir()
    tasks = (
        (picture.record.file_name, (folder, number, picture))
        for number, picture in enumerate(pictures)
    )
    results, failures = for_each(_write_picture, tasks, len(pictures), jobs, "gallery")
    if not results:
        raise ValueError(f"none of the images can be shown: {next(iter(failures.values()), '')}")
    shown = [(n, p) for n, p in enumerate(pictures) if p.record.file_name in results]
    for start in range(0, len(shown), CHUNK):
        outlines = [results[p.record.file_name][1] for _, p in shown[start : start + CHUNK]]
        _write_data(folder, f"chunk-{start // CHUNK}", f"[{','.join(outlines)}]")
    place = {number: k for k, (number, _) in enumerate(shown)}
    detailed = []
    for number, content in details:
        if number in place:
            detailed.append(place[number])
            _write_data(folder, f"details-{place[number]}", json.dumps(content, allow_nan=False))
    images = [{"number": n, **results[p.record.file_name][0]} for n, p in shown]
    overview = _overview(page, [p for _, p in shown], images, detailed)
    _write_data(folder, _OVERVIEW.stem, json.dumps(overview, allow_nan=False))
    for path in sorted((_HERE / "static").iterdir()):
        shutil.copyfile(path, folder / path.name)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("gallery.html").render(
        page=page, num_images=len(shown), percent=percent
    )
    write_text(folder / "index.html", html)
    return failures


def _write_data(folder: Path, name: str, json_text: str) -> None:
    write_text(folder / "data" / f"{name}.js", f'galleryData("{name}", {json_text});\n')


def _write_picture(folder: Path, number: int, picture: Picture) -> tuple[dict[str, Any], str]:
    """Copies an image to the gallery and draws its thumbnail.

    Returns:
        ({"image": file, "thumb": file}, outlines of its layers as JSON)
    """
    image = read_image(picture.path, picture.record.size)
    stem = f"{number:06d}"
    long_side = max(image.shape[:2])
    files = {"image": f"images/{stem}.{'png' if long_side <= THUMB_SIDE else 'jpg'}"}
    _save(folder / files["image"], image, LONG_SIDE)
    files["thumb"] = files["image"]
    if long_side > THUMB_SIDE:
        files["thumb"] = f"thumbs/{stem}.jpg"
        _save(folder / files["thumb"], image, THUMB_SIDE)
    tolerance = tolerance_for(picture.record.size)
    layers = {
        name: [
            [
                instance.class_idx,
                None if instance.score is None else round(instance.score, 4),
                None if instance.hit is None else int(instance.hit),
                rle_outlines(instance.segmentation, tolerance),
            ]
            for instance in instances
        ]
        for name, instances in picture.layers.items()
    }
    return files, json.dumps(layers, allow_nan=False, separators=(",", ":"))


def _save(path: Path, image: np.ndarray, limit: int) -> None:
    factor = limit / max(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    quality = [] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 88]
    done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    assert done
    path.write_bytes(encoded.tobytes())


def _overview(
    page: Page,
    pictures: Sequence[Picture],
    files: Sequence[Mapping[str, Any]],
    detailed: Sequence[int],
) -> dict[str, Any]:
    of_class = {name: page.per_class.get(name, {}) for name in page.class_names}
    return {
        "chunk": CHUNK,
        "iou": page.iou_thresh,
        "classes": [
            {"name": name, "color": _css_color(index), **of_class[name]}
            for index, name in enumerate(page.class_names)
        ],
        "instanceColors": [_css_color(index) for index in range(60)],
        "layers": [{"id": name, **asdict(layer)} for name, layer in page.layers.items()],
        "images": [
            {
                "name": picture.record.file_name,
                "id": picture.record.image_id,
                "image": file["image"],
                "thumb": file["thumb"],
                "width": picture.record.width,
                "height": picture.record.height,
                "ap": None if picture.ap is None else round(picture.ap, 4),
                "objects": picture.objects,
                "found": picture.found,
                # What filters need: class and score of every instance, in a flat list.
                "has": {name: list(_flat(layer)) for name, layer in picture.layers.items()},
            }
            for picture, file in zip(pictures, files, strict=True)
        ],
        "detailed": sorted(detailed),
        "metrics": dict(page.metrics),
        "precision": {str(c): [round(float(p), 4) for p in v] for c, v in page.precision.items()},
        "history": _thinned(page.history),
    }


def _flat(instances: Sequence[Instance]) -> Iterator[float]:
    for instance in instances:
        yield instance.class_idx
        yield 1.0 if instance.score is None else round(instance.score, 3)


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
