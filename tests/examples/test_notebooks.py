"""The notebooks hold no output and run from top to bottom, here on a tiny run."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.config import load_config, save_config
from lib.data.shapes import CLASS_NAMES, make_shapes
from lib.engine.checkpoint import save_checkpoint
from lib.modeling.model_builder import build_model

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What the quickstart leaves behind, with a network that was not trained."""
    root = tmp_path_factory.mktemp("notebook")
    make_shapes(root, seed=2, num_images={"train": 1, "val": 1, "test": 1})
    config = load_config(ROOT / "configs/resnet18_shapes.yaml")
    torch.manual_seed(0)
    model = build_model(config.model, len(CLASS_NAMES), pretrained=False)
    for head in (*model.cls_iou_model.refine_cls, *model.cls_iou_model.refine_iou):
        torch.nn.init.normal_(head.weight, std=0.5)
    content = {"model": model.state_dict(), "step": 1, "class_names": list(CLASS_NAMES)}
    save_checkpoint(root / "run/ckpt", content)
    save_config(config, root / "run/config.yaml")
    (root / "run/summary.json").write_text("{}")
    return root


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_holds_no_output(path):
    assert all(not c["outputs"] and c["execution_count"] is None for c in code_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tiny, monkeypatch):
    monkeypatch.setenv("CIM_RUN", str(tiny / "run"))
    monkeypatch.setenv("CIM_DATA", str(tiny))
    monkeypatch.chdir(path.parent)
    names, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        for number, cell in enumerate(code_cells(path)):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
    if path.stem == "quickstart":
        assert len(names["found"]) > 0
        assert np.array_equal(names["few"].masks, names["proposals"][names["few"].proposal_idx])
        assert "IoU" in said.getvalue()
