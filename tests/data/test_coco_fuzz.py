"""Whatever a COCO file holds: a result, or a ValueError that names the file and the entry.

`CIM_FUZZ_EXAMPLES=100000` tries more of them.
"""

import json
import math
import os
import re
import resource
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.config import PseudoLabelConfig
from lib.data.coco import CocoImages, read_coco
from lib.data.tags import read_coco_tags
from lib.evaluation.coco_eval import evaluate_segm
from lib.evaluation.coco_files import by_image
from lib.evaluation.per_image import compare
from lib.evaluation.pseudo_labels import to_coco_annotations
from lib.files import read_json

EXAMPLES = int(os.environ.get("CIM_FUZZ_EXAMPLES", 300))
HEIGHT, WIDTH = 20, 30
GOOD = {
    "info": {"year": 2026},
    "images": [
        {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH, "license": 1},
        {"id": 2, "file_name": "sub/b.jpg", "height": HEIGHT, "width": WIDTH},
    ],
    "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [[4, 3, 12, 3, 12, 9, 4, 9]],
            "area": 48,
            "bbox": [4, 3, 8, 6],
            "iscrowd": 0,
            "score": 0.5,
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 2,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 50, 450]},
            "iscrowd": 0,
            "score": 0.9,
        },
    ],
}
FOUND = [
    {
        "image_id": a["image_id"],
        "category_id": a["category_id"],
        "score": 0.9,
        "segmentation": a["segmentation"],
    }
    for a in GOOD["annotations"]
]

ALL = PseudoLabelConfig(score_thresh=0)

odd_numbers = st.sampled_from(
    [0, -1, 1, 2, 3, 0.0, 1.0, 2.0, 0.5, -0.0, 1e9, 1e18, 1e308, 2**31, 2**32, 2**53 + 1, 2**63]
    + [2**64 + 1, 10**30, -(10**30), math.nan, math.inf, -math.inf, True, False]
)
odd_texts = st.sampled_from(
    ["", "0", "1", "2", "1.0", "01", "a", "cat", "a.jpg", "../a.jpg", "/a.jpg", "sub\\b.jpg", "b''"]
    + ["é", "e\u0301", "\0", "\ud800", "x" * 300, "true", "None", "c26>0000000000000U;", "ooooooo0"]
)
scalars = st.one_of(st.none(), odd_numbers, odd_texts, st.integers(), st.floats(), st.text())
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
coordinates = st.one_of(st.floats(-40, 70), st.integers(-5, 35), odd_numbers)
polygons = st.lists(st.lists(coordinates | scalars, max_size=12), max_size=3)
counts = st.one_of(
    st.lists(st.integers(-3, HEIGHT * WIDTH + 3) | odd_numbers, max_size=6),
    st.binary(max_size=40).map(lambda text: bytes(48 + b % 64 for b in text).decode()),
    odd_texts,
    anything,
)
sizes = st.one_of(
    st.just([HEIGHT, WIDTH]), st.just([float(HEIGHT), WIDTH]), st.lists(odd_numbers, max_size=3)
)
rles = st.fixed_dictionaries({"size": sizes | anything, "counts": counts})
segmentations = st.one_of(polygons, rles, st.lists(rles, max_size=2), anything)
fields = st.sampled_from(
    [("images", key) for key in ("id", "file_name", "height", "width", "license", None)]
    + [("categories", key) for key in ("id", "name", "supercategory", None)]
    + [("annotations", key) for key in (*GOOD["annotations"][0], None)]
    + [(None, key) for key in ("info", "images", "categories", "annotations")]
)


@st.composite
def changed(draw):
    """A sound json with a few values replaced, removed or doubled."""
    content = json.loads(json.dumps(GOOD))
    for _ in range(draw(st.integers(1, 4))):
        where, key = draw(fields)
        if where is None:
            content[key] = draw(anything)
            continue
        entries = content.get(where)
        if not isinstance(entries, list) or not entries:
            continue
        number = draw(st.integers(0, len(entries) - 1))
        entry, action = entries[number], draw(st.integers(0, 5))
        if not isinstance(entry, dict) or key is None:
            entries[number] = draw(anything)
        elif action == 0:
            entry.pop(key, None)
        elif action == 1:
            entries.append(dict(entry))
        elif key == "segmentation":
            entry[key] = draw(segmentations)
        elif key in ("height", "width") and action == 2:
            entry[key] = draw(st.sampled_from([2**14, 2**28, 10**9]))
        else:
            entry[key] = draw(scalars | anything)
    return content


def uses(path, content):
    """All that reads such a file, each with what it must name when it refuses."""
    yield "labels", lambda: read_coco_tags(path)
    yield "json", lambda: CocoImages(path, require_annotations=False)
    yield "evaluation", lambda: evaluate_segm(path, FOUND)
    yield "single images", lambda: compare(read_coco(path, masks=True), [])
    yield (
        "export",
        lambda: json.dumps(
            to_coco_annotations(FOUND, read_coco(path), ALL, "polygon"), allow_nan=False
        ),
    )
    yield "drawing", lambda: by_image(read_json(path), read_coco(GOOD), str(path), 0.3)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(changed())
def test_every_file_ends_in_a_result_or_an_error_that_names_it(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz" / "set.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    begin = time.process_time()
    for use, run in uses(path, content):
        try:
            run()
        except ValueError as error:
            # Of our own detections on another data set the entry is named, not the file.
            assert str(path) in str(error) or str(error).startswith("the detections: entry"), use
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # kB


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.sampled_from(FOUND).map(dict), max_size=3), st.data())
def test_every_result_file_ends_in_a_result_or_an_error_that_names_it(
    tmp_path_factory, results, data
):
    path = tmp_path_factory.getbasetemp() / "fuzz" / "results.json"
    path.parent.mkdir(exist_ok=True)
    for result in results:
        key = data.draw(st.sampled_from([*result, "bbox", "iscrowd"]))
        result[key] = data.draw(segmentations if key == "segmentation" else scalars | anything)
    path.write_text(json.dumps(results))
    try:
        evaluation = evaluate_segm(GOOD, path)
    except ValueError as error:
        assert re.search(rf"{re.escape(str(path))}: entry \d", str(error))
    else:
        assert all(0 <= value <= 1 for value in evaluation["metrics"].values())


@pytest.mark.parametrize("text", ["", "[", "[" * 10**5, "9" * 5000, '{"images": NaN}', "\xff\xfe"])
def test_files_that_are_no_json(tmp_path, text):
    path = tmp_path / "set.json"
    path.write_bytes(text.encode("latin1"))
    for use, run in uses(path, None):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            run()
            pytest.fail(use)
