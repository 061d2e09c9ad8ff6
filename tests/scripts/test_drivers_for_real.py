"""The four drivers with the real tools, one after the other, on a few small images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.data.shapes import make_shapes

ROOT = Path(__file__).parents[2]
SHORT = {
    "prm.epochs": 1,
    "prm.images_per_update": 4,
    "solver.max_iter": 3,
    "solver.steps": [2],
    "solver.images_per_update": 2,
    "proposals.max_proposals": 20,
    "test.flips": ["none"],
    "input.num_workers": 0,
}


@pytest.mark.slow
def test_from_images_to_pictures(tmp_path):
    make_shapes(tmp_path, seed=1, num_images={"train": 8, "val": 1, "test": 3})
    run = tmp_path / "run"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CIM_VENV": "none",
        "OMP_NUM_THREADS": "1",
        "output_file": str(run),
        "data_root": str(tmp_path),
    }
    overrides = [str(word) for pair in SHORT.items() for word in pair]

    def drive(script, split, *arguments, **variables):
        # Named by its json, so that no driver makes the whole embedded data set.
        split_of = {
            "json": str(tmp_path / "shapes" / "annotations" / f"{split}.json"),
            "images": str(tmp_path / "shapes" / split),
        }
        process = subprocess.run(
            ["bash", str(ROOT / "scripts" / f"{script}.sh"), *arguments],
            env={**environment, **split_of, **variables},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout + process.stderr

    drive("train_CIM", "train", *overrides)
    assert (run / "ckpt" / "model_step3.pth").is_file()

    printed = drive("eval_CIM", "test", iter_time="3")
    assert "AP25" in printed
    metrics = json.loads((run / "test" / "test" / "metrics.json").read_text())
    assert metrics["num_images"] == 3
    assert 0 <= metrics["metrics"]["ap25"] <= 1

    drive("generate_msrcnn_label", "train", score_thresh="0", segmentation="uncompressed")
    labels = json.loads((run / "pseudo_labels" / "train.json").read_text())
    assert len(labels["images"]) == 8
    truth = json.loads((tmp_path / "shapes" / "annotations" / "train.json").read_text())
    seen = {(a["image_id"], a["category_id"]) for a in labels["annotations"]}
    assert seen
    assert seen <= {(a["image_id"], a["category_id"]) for a in truth["annotations"]}

    refine = {
        "refine.solver.max_iter": 2,
        "refine.solver.steps": [1],
        "refine.solver.images_per_update": 2,
        "refine.input.mosaics": 0.5,
        "refine.test.score_thresh": 0,
    }
    overrides += [str(word) for pair in refine.items() for word in pair]
    test_set = tmp_path / "shapes" / "annotations" / "test.json", tmp_path / "shapes" / "test"
    variables = dict(zip(("test_json", "test_images"), map(str, test_set), strict=True))
    printed = drive("refine_msrcnn", "train", *overrides, score_thresh="0", **variables)
    assert "Train a second network on the pseudo labels" in printed
    assert (run / "mask_rcnn" / "ckpt" / "model_step2.pth").is_file()
    metrics = json.loads((run / "mask_rcnn" / "test" / "test" / "metrics.json").read_text())
    assert metrics["num_images"] == 3

    drive("refine_msrcnn", "train", *overrides, score_thresh="0", rounds="2")  # on its labels
    assert (run / "mask_rcnn_2" / "ckpt" / "model_step2.pth").is_file()
    again = json.loads((run / "mask_rcnn_2" / "pseudo_labels" / "train.json").read_text())
    found = {(a["image_id"], a["category_id"]) for a in again["annotations"]}
    assert found == {(a["image_id"], a["category_id"]) for a in truth["annotations"]}

    drive("visual_result_mmcv", "test", "--compare", "--score-thresh", "0")
    pictures = {path.name for path in (run / "visual" / "test").iterdir()}
    assert pictures == {"overview.png", *(f"test_0000{n}.png" for n in (1, 2, 3))}

    drive("visual_result_mmcv", "test", "--gallery", "--details", "1")
    assert (run / "gallery" / "test" / "index.html").is_file()
