"""Readers of proposals made elsewhere, which the import moves into the store.

A further format is a file in this folder with a subclass of `FileReader` or `Reader`, and its
line below.
"""

from lib.proposals.readers.base import FileReader, Reader
from lib.proposals.readers.cob import CobReader
from lib.proposals.readers.coco_rle import CocoRleReader
from lib.proposals.readers.npz import NpzReader
from lib.proposals.readers.png import LabelPngReader, MaskPngReader
from lib.proposals.readers.published import PickleReader

READERS: dict[str, type[Reader]] = {
    "cob": CobReader,
    "coco-rle": CocoRleReader,
    "label-png": LabelPngReader,
    "mask-png": MaskPngReader,
    "npz": NpzReader,
    "pickle": PickleReader,
}

__all__ = ["READERS", "FileReader", "Reader"]
