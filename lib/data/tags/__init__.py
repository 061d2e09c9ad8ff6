"""Image-level labels: all that training knows about the content of an image.

They come as a CSV, a text list, a dictionary of numpy vectors, a COCO json or a folder for each
class. lib/data/custom.py makes a COCO json of them. A further form is a file in this folder with a
function from its path to `ImageTags`, and its line below.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lib.data.tags.base import ImageTags, existing_file
from lib.data.tags.coco import read_coco_tags
from lib.data.tags.folders import read_folder_tags
from lib.data.tags.npy import read_npy_tags
from lib.data.tags.table import read_csv_tags
from lib.data.tags.text import read_text_tags

READERS: dict[str, Callable[[str | Path], ImageTags]] = {
    ".csv": read_csv_tags,
    ".tsv": read_csv_tags,
    ".txt": read_text_tags,
    ".lst": read_text_tags,
    ".npy": read_npy_tags,
    ".json": read_coco_tags,
}
"""By the suffix of the file."""


def read_tags(path: str | Path, leave_out: Path | None = None) -> ImageTags:
    """Reads labels in any of these forms.

    A folder has a sub-folder for each class; the suffix tells the form of a file: `.csv` or
    `.tsv`, `.txt` or `.lst`, `.npy`, `.json`.

    Args:
        leave_out: a folder that is passed over where labels are folders.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: another suffix, or what the reader of that form finds wrong.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder_tags(path, leave_out)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{existing_file(path)}: labels come as a .csv of rows `file,label`, a .txt of lines "
            "`name class-id ...`, a .npy of a dictionary (name -> 0/1 vector), a COCO .json, or a "
            "folder with a sub-folder for each class; save a spreadsheet as CSV"
        )
    return reader(path)
