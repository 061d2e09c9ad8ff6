"""Labels as folders: one for every class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lib.data.images import IMAGE_SUFFIXES
from lib.data.tags.base import ImageTags

logger = logging.getLogger(__name__)


def read_folder_tags(folder: str | Path, leave_out: Path | None = None) -> ImageTags:
    """Takes every sub-folder for a class, and the images in it for images of that class.

    Classes are the names of the sub-folders, sorted; image names are `<class>/<file>`, with
    further sub-folders between them if there are any, so an image has one label. Files that are
    not images and hidden ones are passed over. Links to folders are followed.

    Args:
        leave_out: a folder that is passed over, wherever it lies.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no sub-folders, or one of them holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    classes = sorted(
        sub
        for sub in folder.iterdir()
        if sub.is_dir() and not sub.name.startswith(".") and not _is_same(sub, leave_out)
    )
    if not classes:
        raise ValueError(f"{folder}: it has no sub-folders; expected one for each class")
    labels: dict[str, tuple[int, ...]] = {}
    passed_over: Counter[str] = Counter()
    names: list[str] = []
    for sub in classes:
        files = visible_files(sub, leave_out)
        images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
        if not files and any(_is_run(path) for path in (sub, *sub.glob("*"), *sub.glob("*/*"))):
            continue
        if not images:
            raise ValueError(
                f"{sub}: no images in this class's folder ({', '.join(IMAGE_SUFFIXES)}); remove "
                "or fill it"
            )
        passed_over.update(Path(name).suffix for name in set(files).difference(images))
        labels |= {f"{sub.name}/{name}": (len(names),) for name in images}
        names.append(sub.name)
    if passed_over:
        told = ", ".join(f"{count} {suffix or '(none)'}" for suffix, count in passed_over.items())
        logger.warning("%s: passed over, by suffix: %s", folder, told)
    return ImageTags(tuple(names), labels)


def visible_files(folder: Path, leave_out: Path | None = None) -> list[str]:
    """The files below a folder, relative to it with `/`, sorted, without hidden ones.

    Links to folders are followed, but not into a folder that they lie in. Runs, with all their
    pictures, are passed over.
    """

    def below(path: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(path)
        if real in above or _is_same(Path(path), leave_out) or _is_run(Path(path)):
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from below(entry.path, f"{prefix}{entry.name}/", above | {real})
                elif entry.is_file():
                    yield prefix + entry.name

    return sorted(below(str(folder), "", frozenset()))


def _is_run(path: Path) -> bool:
    """Whether a folder is the output of a training."""
    return (path / "environment.json").is_file() and (path / "config.yaml").is_file()


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.exists() and other.exists() and path.samefile(other)
