"""docs/images/pipeline.py: the page around the pictures."""

import importlib.util
import re
from xml.etree import ElementTree

import numpy as np

from tests.docs.documents import ROOT

PICTURES = ("image", "proposals", "peaks", "clusters", "detections")
OF_STAGES = [f"{what} {stage}" for what in ("seeds", "instances") for stage in range(3)]


def test_the_page_is_whole_and_names_files_that_are_there():
    path = ROOT / "docs/images/pipeline.py"
    spec = importlib.util.spec_from_file_location("pipeline", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {name: np.zeros((8, 8, 3), np.uint8) for name in (*PICTURES, *OF_STAGES)}
    svg = ElementTree.fromstring(module.draw_page(made, ["cat", "a < b"]))
    words = [element.text for element in svg.iter() if element.tag.endswith("}text")]
    assert "cat, a < b" in words
    assert sum(element.tag.endswith("}image") for element in svg.iter()) == len(made)
    named = [word for word in words if re.fullmatch(r"[a-z_]+/[a-z_/.]*", word)]
    assert len(named) >= 9
    for name in named:
        assert (ROOT / "lib" / name.removeprefix("lib/")).exists(), name
