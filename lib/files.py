"""Files that are either whole or not there: written to a temporary name, then renamed."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write to that takes the name `path` only when the block ends well.

    Parent folders are made. On an error nothing is left behind and an older file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def atomic_folder(path: Path, kind: str, mark: str | Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `path` only when the block ends well.

    Args:
        kind: what the folder is to be, in a word.
        mark: a file that every folder of this kind has: an older one is replaced.

    Raises:
        FileExistsError: `path` is a folder of something else.
    """
    if path.exists() and any(path.iterdir()) and not (path / mark).is_file():
        raise FileExistsError(f"{path}: holds files that are no {kind}; name another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_parts(path: Path) -> None:
    """Removes the remains of killed processes that were writing `path`, a file or a folder."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    write_text(path, json.dumps(content, indent=indent, allow_nan=False))


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` a link to `source`, or a copy on disks without links (exFAT, SMB)."""
    for link in (os.symlink, os.link):
        try:
            return link(source.absolute(), target)
        except OSError:
            continue
    shutil.copyfile(source, target)


def read_json(path: str | Path) -> Any:
    """Reads JSON; a missing or broken file raises an error that names it and the remedy."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: {'a folder, expected a' if path.exists() else 'no such'} file"
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also numbers of more than 4300 digits
        raise ValueError(
            f"{path}: not valid JSON ({error}); the file may be truncated: copy or make it again"
        ) from None


def find_file(path: Path) -> Path | None:
    """The file of this name, with accents in either Unicode form; None if there is none."""
    if path.is_file():
        return path
    for form in ("NFC", "NFD"):
        for folder in (path.parent, Path(unicodedata.normalize(form, str(path.parent)))):
            other = folder / unicodedata.normalize(form, path.name)
            if other.is_file():
                return other
    return None


def whole(value: Any) -> int | None:
    """The int of a whole number, which JSON may write as 4.0; None for anything else."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def id_key(value: Any) -> int | str | None:
    """Key to compare ids by: 1, 1.0 and "1" are one id. None for what is no id."""
    if isinstance(value, str) and value:
        number = re.fullmatch(r"(-?(?:0|[1-9][0-9]{0,30}))(?:\.0+)?", value)
        return int(number[1]) if number else value
    return whole(value)


def first_few(names: Sequence[str], most: int = 10) -> str:
    """The first names of many, safe to print."""
    text = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return text.encode("utf-8", "backslashreplace").decode()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
