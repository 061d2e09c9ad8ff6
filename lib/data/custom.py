"""A data set of one's own, from a folder of images and their labels, made ready once.

What comes out is a COCO json without masks in the data root, which everything else takes. Images
that could not be used as they are stored (turned by their EXIF orientation, 16 bits deep,
transparent, enormous) are copied into a usable form under the same name; the others are linked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lib.data import usable
from lib.data.tags import IMAGE_SUFFIXES, ImageTags, read_tags, visible_files
from lib.files import link_or_copy, read_json, write_json
from lib.parallel import for_each

logger = logging.getLogger(__name__)

FEW = 200
"""Below this many images starting processes takes longer than they save."""
_NAMED = 10
"""So many of the names that something is wrong with are told."""


def prepare(
    images: str | Path, labels: str | Path, name: str, root: str | Path
) -> tuple[Path, Path]:
    """Makes `<root>/custom/<name>.json` of a folder of images and their labels.

    Done again only when the labels, or the images that they name, have changed. Every image is
    read once, and all that cannot be used are told together. Images without an entry in the
    labels are left out, with a warning.

    Args:
        images: a folder; sub-folders are looked through as well.
        labels: see `lib.data.tags.read_tags`.
        name: of the data set.

    Returns:
        The json, and the folder that its file names lie in: `images` itself, or
        `<root>/custom/<name>` where an image had to be changed.

    Raises:
        FileNotFoundError: there is no such folder or file, or labels name images that are not there.
        ValueError: labels or images cannot be used; or the name is that of another data set.
    """
    images, labels = Path(images), Path(labels)
    target = Path(root) / "custom" / f"{name}.json"
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: no such folder of images")
    tags = read_tags(labels)
    index = ImageIndex(images)
    found, tags = _resolve(tags, index, labels)
    source = {"images": str(images.absolute()), "labels": str(labels.absolute())}
    made_from = {**source, "content": _digest(tags, images, found)}
    if target.is_file():
        before = read_json(target).get("info", {}).get("made_from", {})
        if before == made_from:
            return target, _image_folder(target, images)
        if {key: before.get(key) for key in source} != source:
            raise ValueError(
                f"{target} was made from {before.get('images')} and {before.get('labels')}; give "
                "--name for this data set, or remove that file"
            )
        logger.warning("%s: labels or images have changed; it is made anew", target)
    _warn_of_unlisted(index, found, labels)
    sizes = _read_all(images, found, target.with_suffix(""))
    content = _coco(tags, sizes)
    info = {"description": f"image-level labels of {labels.name}", "made_from": made_from}
    write_json(target, {"info": info, **content})
    logger.info("%s: %s", target, _summary(tags))
    return target, _image_folder(target, images)


class ImageIndex:
    """The images of a folder, found by what lists call them.

    A list may leave out the suffix or the folder, write the suffix in other case, separate folders
    by `\\\\`, and spell accented letters in either of Unicode's ways.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = visible_files(folder)
        self.images = [f for f in self.files if Path(f).suffix.lower() in IMAGE_SUFFIXES]
        self._exact = set(self.files)
        self._by: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
        for file in self.files:
            for table, key in zip(self._by, _keys(file), strict=True):
                table[key].append(file)

    def find(self, name: str) -> list[str]:
        """The files that `name` may mean: one if all is well."""
        name = name.strip()
        if name in self._exact:
            return [name]
        name = name.replace("\\", "/").removeprefix("./").lstrip("/")
        if name in self._exact:
            return [name]
        whole, _, last, _ = _keys(name)
        # In this order: as given, without suffix, in any sub-folder, there without suffix.
        for table, key in zip(self._by, (whole, whole, last, last), strict=True):
            found = table.get(key, [])
            images = [f for f in found if Path(f).suffix.lower() in IMAGE_SUFFIXES]
            if images or found:
                return images or found
        return []


def _keys(name: str) -> tuple[str, str, str, str]:
    """The path, the path without suffix, the file name, the file name without suffix."""
    path = PurePosixPath(unicodedata.normalize("NFC", name).casefold())
    return str(path), str(path.with_suffix("")) if path.name else "", path.name, path.stem


def _resolve(tags: ImageTags, index: ImageIndex, labels: Path) -> tuple[list[str], ImageTags]:
    """The distinct files that the labels are of, and the labels by file."""
    by_file: dict[str, set[int]] = {}
    ids: dict[str, int] = {}
    missing, ambiguous = [], []
    for name, classes in tags.labels.items():
        found = index.find(name)
        if len(found) != 1:
            (ambiguous if found else missing).append(
                f"{name} ({' and '.join(found[:3])})" if found else name
            )
            continue
        by_file.setdefault(found[0], set()).update(classes)
        if tags.image_ids is not None:
            ids.setdefault(found[0], tags.image_ids[name])
    if missing:
        raise FileNotFoundError(
            f"{labels}: {len(missing)} of its {len(tags.labels)} images are not in {index.folder}: "
            f"{_some(missing)}; is it the right folder?"
        )
    if ambiguous:
        raise ValueError(
            f"{labels}: {len(ambiguous)} names may mean several files in {index.folder}: "
            f"{_some(ambiguous)}; write folder and suffix"
        )
    stems = Counter(str(PurePosixPath(file).with_suffix("")) for file in by_file)
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        raise ValueError(
            f"{labels}: images of one folder differ only in their suffix: {_some(twice)}; what is "
            "made from an image is called like it without suffix: rename one of each"
        )
    resolved = {file: tuple(sorted(classes)) for file, classes in by_file.items()}
    numbers = ids if tags.image_ids is not None else None
    return list(resolved), ImageTags(tags.class_names, resolved, tags.category_ids, numbers)


def _warn_of_unlisted(index: ImageIndex, found: Iterable[str], labels: Path) -> None:
    unlisted = sorted(set(index.images) - set(found))
    if unlisted:
        logger.warning(
            "%s: %d of the %d images in %s have no label there and are left out: %s",
            labels,
            len(unlisted),
            len(index.images),
            index.folder,
            _some(unlisted),
        )


def _digest(tags: ImageTags, images: Path, files: Iterable[str]) -> str:
    """Tells apart other labels, and other images by their sizes and times."""
    content = hashlib.blake2b(repr((tags, usable.MAX_PIXELS)).encode(), digest_size=16)
    for file in files:
        status = (images / file).stat()
        content.update(f"{status.st_size} {status.st_mtime_ns};".encode())
    return content.hexdigest()


def _image_folder(target: Path, images: Path) -> Path:
    own = target.with_suffix("")
    return own if own.is_dir() else images


def _read_all(images: Path, files: list[str], folder: Path) -> dict[str, tuple[int, int]]:
    """(height, width) of every image as it will be used; fills `folder` if any is changed."""
    making = folder.with_name(f".{folder.name}.part")
    for old in (making, folder):
        shutil.rmtree(old, ignore_errors=True)
    tasks = ((file, (images / file, making / file)) for file in files)
    jobs = 1 if len(files) < FEW else -1
    read, failures = for_each(usable.make_usable, tasks, len(files), jobs, "reading images")
    if failures:
        shutil.rmtree(making, ignore_errors=True)
        reasons = "; ".join(list(failures.values())[:_NAMED])
        more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        raise ValueError(
            f"{len(failures)} of {len(files)} images cannot be used; replace them or take them out "
            f"of the labels: {reasons}{more}"
        )
    changes = Counter(change for _, told in read.values() for change in told)
    if changes:
        for file in files:
            if not (making / file).exists():
                (making / file).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(images / file, making / file)
        os.replace(making, folder)
        told = ", ".join(f"{count} {change}" for change, count in changes.items())
        logger.warning("%s: copies of images that were changed: %s", folder, told)
    return {file: size for file, (size, _) in read.items()}


def _coco(tags: ImageTags, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """A COCO json whose annotations have no masks, only categories; ids as given or from 1."""
    category_ids = tags.category_ids or tuple(range(1, len(tags.class_names) + 1))
    images, annotations = [], []
    for number, (file, classes) in enumerate(tags.labels.items(), start=1):
        image_id = tags.image_ids[file] if tags.image_ids is not None else number
        height, width = sizes[file]
        images.append({"id": image_id, "file_name": file, "height": height, "width": width})
        for c in classes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[c],
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": i, "name": name} for i, name in zip(category_ids, tags.class_names, strict=True)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


def _summary(tags: ImageTags) -> str:
    counts = Counter(c for classes in tags.labels.values() for c in classes)
    told = [f"{name} {counts[c]}" for c, name in enumerate(tags.class_names)]
    return f"{len(tags.labels)} images, {len(told)} classes ({_some(told)})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
