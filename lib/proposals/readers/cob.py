"""COB proposals (Maninis et al., ECCV 2016) as published for VOC and COCO: MATLAB files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import scipy.io

from lib.proposals.readers.base import FileReader, as_masks


class CobReader(FileReader):
    """`<stem>.mat` with `maskmat`: on VOC a (P, 1) cell of H x W masks, on COCO (P, H, W) numbers.

    The COCO files bear the names of the 2014 release, whichever release the image is from.
    """

    suffix = ".mat"
    content = "maskmat"
    remedy = "download the file again"

    def names(self, stem: str) -> list[str]:
        coco = re.fullmatch(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", stem)
        if coco is None:
            return [stem]
        return [f"COCO_train2014_{coco[1]}", f"COCO_val2014_{coco[1]}", coco[1]]

    @staticmethod
    def read(found: Path) -> np.ndarray:
        try:
            # Some published files fail the check of compressed data although they read well.
            content = scipy.io.loadmat(
                found, variable_names=["maskmat"], verify_compressed_data_integrity=False
            )
        except NotImplementedError as error:
            raise ValueError(
                f"{found}: a MATLAB 7.3 file, which is not read; save it with '-v7' in MATLAB"
            ) from error
        except Exception as error:  # damaged bytes raise errors of every kind
            raise ValueError(
                f"{found}: not a readable MATLAB file ({type(error).__name__}: {error}); "
                "download the file again"
            ) from error
        if "maskmat" not in content:
            raise ValueError(f"{found}: no variable maskmat; is it a file of COB proposals?")
        maskmat = content["maskmat"]
        masks = as_masks(maskmat[None] if maskmat.ndim == 2 else maskmat, f"{found}: maskmat")
        # MATLAB's order in memory is the opposite. A few columns at a time stay in the processor's
        # cache: several times as fast as all at once.
        ordered = np.empty(masks.shape, masks.dtype)
        for left in range(0, masks.shape[2], 16):
            ordered[:, :, left : left + 16] = masks[:, :, left : left + 16]
        return ordered
