"""Makes a data set from a folder of images and their labels, once.

The result is a COCO json without masks in the data root, which everything else takes. Images
that cannot be used as they are stored (turned by their EXIF orientation, 16 bits deep,
transparent, enormous) are copied into a usable form under the same name; the others are linked.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lib.data import images as image_files
from lib.data.coco import warn_of_labels
from lib.data.images import IMAGE_SUFFIXES, check_name, make_usable
from lib.data.tags import ImageTags, read_tags
from lib.data.tags.folders import visible_files
from lib.files import first_few, link_or_copy, read_json, write_json
from lib.parallel import for_each
from lib.provenance import Memory, fingerprint

logger = logging.getLogger(__name__)

_UPLOADED = re.compile(r"((?:^|.*/))[0-9a-f]{8}(?:-|__)(?=[^/]+$)")
"""A name as Label Studio exports it."""
FEW = 200
"""Below this many images starting processes takes longer than they save."""


def prepare(
    images: str | Path, labels: str | Path, name: str, root: str | Path
) -> tuple[Path, Path]:
    """Makes `<root>/custom/<name>.json` from a folder of images and their labels.

    Made again only when the labels, or the images that they name, have changed. Every image is
    read once, and those that cannot be used are reported together. Images without an entry in the
    labels are left out, with a warning.

    Args:
        images: a folder; sub-folders are looked through as well, but not `root`.
        labels: see `lib.data.tags.read_tags`.
        name: of the data set.

    Returns:
        The json, and the folder that its file names lie in: `images` itself, or
        `<root>/custom/<name>` where an image had to be changed.

    Raises:
        FileNotFoundError: no such folder or file, or labels name images that are not there.
        ValueError: labels or images cannot be used; or the name is that of another data set.
    """
    images, labels, root = Path(images), Path(labels), Path(root)
    target = root / "custom" / f"{name}.json"
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: no such folder of images")
    tags = read_tags(labels, leave_out=root)
    index = ImageIndex(images, leave_out=root)
    tags = _resolve(tags, index, labels)
    found = list(tags.labels)
    source = {"images": str(images.absolute()), "labels": str(labels.absolute())}
    content = fingerprint(repr(tags), image_files.MAX_PIXELS, Memory(root).read(images, found))
    made_from = {**source, "content": content}
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
    if unlisted := sorted(set(index.images).difference(found)):
        logger.warning(
            f"{labels}: {len(unlisted)} of the {len(index.images)} images in {images} have no "
            f"label there and are left out: {first_few(unlisted)}"
        )
    matrix = np.zeros((len(found), len(tags.class_names)), bool)
    for row, classes in zip(matrix, tags.labels.values(), strict=True):
        row[list(classes)] = True
    warn_of_labels(tags.class_names, matrix, target)
    sizes = _read_all(images, found, target.with_suffix(""))
    info = {"description": f"image-level labels of {labels.name}", "made_from": made_from}
    write_json(target, {"info": info, **_coco(tags, sizes)})
    counts = zip(tags.class_names, matrix.sum(axis=0), strict=True)
    told = first_few([f"{class_name} {count}" for class_name, count in counts])
    logger.info("%s: %d images, %d classes (%s)", target, *matrix.shape, told)
    return target, _image_folder(target, images)


class ImageIndex:
    """Finds the images of a folder by the names that lists give them.

    A list may leave out the suffix or leading folders, write more leading folders than there are
    below the folder, write letters in other case, separate folders by `\\\\`, and spell accented
    letters in either of Unicode's ways. A folder that is written below the folder must agree.
    Eight hexadecimal digits that Label Studio puts in front of a name are passed over.

    Args:
        leave_out: a folder that is passed over.
        files: names below the folder; None looks for them.
    """

    def __init__(
        self, folder: Path, leave_out: Path | None = None, files: Sequence[str] | None = None
    ) -> None:
        self.folder = folder
        self.files = visible_files(folder, leave_out) if files is None else files
        self.images = [f for f in self.files if f.lower().endswith(IMAGE_SUFFIXES)]
        self.unknown_folders: set[str] = set()
        """Leading folders that lists wrote and that are not those of this folder."""
        self._exact = set(self.files)
        self._roots = {_key(str(folder.absolute())), _key(os.path.realpath(folder))}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_number: dict[int, list[str]] = defaultdict(list)
        for file in self.files:
            path = PurePosixPath(_key(file))
            self._by_name[path.name].append(file)
            self._by_stem[path.stem].append(file)
            if (digits := path.stem.replace("_", "")).isdecimal() and len(digits) < 30:
                self._by_number[int(digits)].append(file)

    def find(self, name: str) -> list[str]:
        """The files that `name` may mean; exactly one if all is well."""
        name = name.strip()
        if name in self._exact:
            return [name]
        name = name.replace("\\", "/")
        whole = os.path.normpath(name) if name else ""
        if whole in self._exact:
            return [whole]
        written = PurePosixPath(_key(whole))
        inside = self._inside(written)
        for table in (self._by_name, self._by_stem):
            found = self._ends_alike(table.get(written.name, []), inside or written)
            if inside is not None:
                found = [f for f in found if len(PurePosixPath(f).parts) == len(inside.parts)]
            if len(found) == 1 and inside is None:
                self._note_folders(PurePosixPath(whole), found[0])
            if found:
                return found
        if whole.isdecimal() and len(whole) < 30:  # an image id: VOC's and COCO's are the names
            return self._by_number.get(int(whole), [])
        plain = _UPLOADED.sub(r"\1", whole)
        return self.find(plain) if plain != whole else []

    def _inside(self, written: PurePosixPath) -> PurePosixPath | None:
        """The path below this folder, where `written` leads into it."""
        for root in self._roots:
            for start in ("", _key(os.getcwd())):
                path = PurePosixPath(start, written)
                if path.is_absolute() and path.is_relative_to(root):
                    return path.relative_to(root)
        return None

    def _ends_alike(self, files: list[str], written: PurePosixPath) -> list[str]:
        """Files whose path ends like `written`, or the other way round; the longest common end."""
        best: dict[int, list[str]] = defaultdict(list)
        for file in files:
            parts = PurePosixPath(_key(file)).parts
            shorter = min(len(parts), len(written.parts))
            if shorter == 1 or parts[-shorter:-1] == written.parts[-shorter:-1]:
                best[shorter if len(parts) <= len(written.parts) else 0].append(file)
        found = best[max(best)] if best else []
        found = [f for f in found if f.lower().endswith(IMAGE_SUFFIXES)] or found
        if len(found) > 1:  # one file by two ways is one
            real = {os.path.realpath(self.folder / file): file for file in reversed(found)}
            found = sorted(real.values())
        return found

    def _note_folders(self, written: PurePosixPath, file: str) -> None:
        more = written.parts[: -len(PurePosixPath(file).parts)]
        roots = [PurePosixPath(root).parts for root in self._roots]
        if more and not any(root[-len(more) :] == tuple(map(_key, more)) for root in roots):
            self.unknown_folders.add(str(PurePosixPath(*more)))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def find_files(names: Collection[str], index: ImageIndex, source: Path) -> dict[str, str]:
    """The file that each name in a list means.

    Args:
        source: the list, for errors.

    Raises:
        FileNotFoundError: there is none for a name.
        ValueError: a name may mean several files, or two names mean one.
    """
    files: dict[str, str] = {}
    of_file: dict[str, str] = {}
    missing, ambiguous, twice = [], [], []
    for name in names:
        found = index.find(name)
        if not found:
            missing.append(name)
        elif len(found) > 1:
            ambiguous.append(f"{name} ({' and '.join(found[:3])})")
        elif of_file.setdefault(found[0], name) != name:
            twice.append(f"{of_file[found[0]]} and {name} ({found[0]})")
        else:
            files[name] = found[0]
    if missing:
        raise FileNotFoundError(
            f"{source}: {len(missing)} of its {len(names)} images are not in {index.folder}: "
            f"{first_few(missing)}; is it the right folder? Folders that are written must agree "
            "with those below it"
        )
    if ambiguous:
        raise ValueError(
            f"{source}: {len(ambiguous)} names may mean several files in {index.folder}: "
            f"{first_few(ambiguous)}; write folder and suffix"
        )
    if twice:
        raise ValueError(
            f"{source}: {len(twice)} files in {index.folder} are meant by two names: "
            f"{first_few(twice)}; write every image in one way, with its folder"
        )
    if index.unknown_folders:
        told = first_few(sorted(index.unknown_folders))
        logger.warning(
            f"{source}: images are found by the ends of their paths; in front of these it has "
            f"{told}, and they lie in {index.folder}"
        )
    return files


def _resolve(tags: ImageTags, index: ImageIndex, labels: Path) -> ImageTags:
    """Labels by file instead of by the name in the list."""
    files = find_files(tags.labels, index, labels)
    by_file = {files[name]: classes for name, classes in tags.labels.items()}
    if odd := [fault for file in by_file if (fault := check_name(file))]:
        raise ValueError(
            f"{index.folder}: {len(odd)} images have a name that cannot be used: {first_few(odd)}"
        )
    stems = Counter(str(PurePosixPath(file).with_suffix("")) for file in by_file)
    if same := [stem for stem, count in stems.items() if count > 1]:
        raise ValueError(
            f"{labels}: images of one folder differ only in their suffix: {first_few(same)}; what "
            "is made from an image is called like it without suffix: rename one of each"
        )
    ids = tags.image_ids and {file: tags.image_ids[name] for name, file in files.items()}
    return replace(tags, labels=by_file, image_ids=ids)


def _image_folder(target: Path, images: Path) -> Path:
    own = target.with_suffix("")
    return own if own.is_dir() else images


def _read_all(images: Path, files: list[str], folder: Path) -> dict[str, tuple[int, int]]:
    """(height, width) of every image as it will be used; fills `folder` if any is copied."""
    making = folder.with_name(f".{folder.name}.part")
    for old in (making, folder):
        shutil.rmtree(old, ignore_errors=True)
    tasks = ((file, (images / file, making / file)) for file in files)
    jobs = 1 if len(files) < FEW else -1
    read, failures = for_each(make_usable, tasks, len(files), jobs, "reading images")
    if failures:
        shutil.rmtree(making, ignore_errors=True)
        reasons = "; ".join([*failures.values()][:10])
        more = f"; and {len(failures) - 10} more" if len(failures) > 10 else ""
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
        image_id = tags.image_ids[file] if tags.image_ids else number
        height, width = sizes[file]
        image = {"id": image_id, "file_name": file, "height": height, "width": width}
        if tags.original_ids and image_id in tags.original_ids:
            image["original_id"] = tags.original_ids[image_id]
        images.append(image)
        for c in classes:
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_ids[c]}
            annotations.append({**ids, "iscrowd": 0})
    categories = [
        {"id": i, "name": name} for i, name in zip(category_ids, tags.class_names, strict=True)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}
