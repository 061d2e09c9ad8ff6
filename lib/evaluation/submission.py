"""Detections in the form that COCO's evaluation server accepts."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.evaluation.coco_files import check_results
from lib.files import atomic_file

_MOST = 100
"""Detections of an image that the server counts."""


def submission_name(dataset_json: str | Path, algorithm: str) -> str:
    """The file name that the server expects, without suffix.

    `detections_test-dev2017_CIM_results` for image_info_test-dev2017.json.

    Raises:
        ValueError: the json is not named like one of COCO's, or the algorithm's name does not fit
            into a file name.
    """
    match = re.fullmatch(r"(?:image_info|instances)_([a-z-]+\d{4})", Path(dataset_json).stem)
    if match is None:
        raise ValueError(
            f"{dataset_json}: the server takes detections on COCO's own sets, whose files are "
            "named like image_info_test-dev2017.json"
        )
    if not re.fullmatch(r"[A-Za-z0-9+.-]+", algorithm):
        raise ValueError(
            f"the algorithm's name {algorithm!r} becomes part of a file's: letters, digits, "
            "plus, minus and dots only"
        )
    return f"detections_{match[1]}_{algorithm}_results"


def write_submission(
    results: Sequence[dict[str, Any]], dataset: dict[str, Any], path: Path, name: str
) -> tuple[int, int]:
    """Writes the zip to upload: one json of image_id, category_id, segmentation and score.

    Args:
        results, dataset, name: as for `check_results`.
        path: the zip file.

    Returns:
        (number of detections, number of images that have some).

    Raises:
        ValueError: see `check_results`; also no detections, or more on an image than the server
            counts.
    """
    checked = check_results(results, dataset, name)
    if not checked:
        raise ValueError(f"{name}: there are no detections to upload")
    of_image = Counter(result["image_id"] for result in checked)
    image_id, most = of_image.most_common(1)[0]
    if most > _MOST:
        raise ValueError(
            f"{name}: image {image_id} has {most} detections, the server counts {_MOST}; test "
            f"with test.detections_per_image {_MOST} and without the image-level labels"
        )
    with (
        atomic_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{path.stem}.json", "w", force_zip64=True) as content,
    ):
        for number, result in enumerate(checked):
            content.write((b",\n" if number else b"[\n") + json.dumps(result).encode())
        content.write(b"\n]\n")
    return len(checked), len(of_image)
