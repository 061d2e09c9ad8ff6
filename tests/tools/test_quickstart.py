"""The quickstart from beginning to end, with few images and updates."""

import json
from pathlib import Path

import pytest

from tests.in_process import run_tools_here
from tools import quickstart

SHORT = ["solver.max_iter", "3", "solver.steps", "[2]", "prm.epochs", "1"]


def test_goes_from_nothing_to_a_summary_and_trains_once(tmp_path, capfd, monkeypatch):
    run = tmp_path / "run"
    common = ["--output", str(run), "--data-root", str(tmp_path / "data"), "--images", "6", "4"]
    assert quickstart.main([*common, "--set", *SHORT]) == 0
    said = capfd.readouterr()
    assert "Mask AP on the test images" in said.out
    assert "next: python" not in said.err  # the chain goes on by itself
    titles = [line.split(":")[0] for line in said.err.splitlines() if line.startswith("[")]
    assert titles == [
        "[1/13] shapes (shapes_train)",
        "[2/13] proposals (shapes_train)",
        "[3/13] proposals (shapes_test)",
        "[4/13] recall (shapes_test)",
        "[5/13] prm (shapes_train)",
        "[6/13] clusters (shapes_train)",
        "[7/13] train (shapes_train)",
        "[8/13] test (shapes_test)",
        "[9/13] evaluate (shapes_test)",
        "[10/13] masks (shapes_train)",
        "[11/13] pseudo_labels (shapes_train)",
        "[12/13] pictures (shapes_test)",
        "[13/13] gallery (shapes_test)",
    ]

    summary = json.loads((run / "summary.json").read_text())
    assert summary["metrics"].keys() >= {"ap25", "ap50", "ap70", "ap75"}
    assert all(0 <= value <= 1 for value in summary["metrics"].values())
    steps = {name: seconds for name, seconds in summary["seconds"].items() if name != "total"}
    assert len(steps) == 13 and min(steps.values()) > 0
    assert summary["seconds"]["total"] == pytest.approx(sum(steps.values()), abs=0.1)
    missing = [path for path in summary["paths"].values() if not Path(path).exists()]
    assert not missing
    labels = json.loads(Path(summary["paths"]["pseudo_labels"]).read_text())
    assert len(labels["images"]) == 6

    made = [*(run / "ckpt").iterdir(), tmp_path / "data/prm/shapes_train.pth"]
    before = [path.stat().st_mtime_ns for path in made]
    run_tools_here(monkeypatch)
    assert quickstart.main([*common, "--set", *SHORT]) == 0
    assert [path.stat().st_mtime_ns for path in made] == before
    again = json.loads((run / "summary.json").read_text())
    assert again["metrics"] == summary["metrics"] and again["paths"] == summary["paths"]

    capfd.readouterr()
    with pytest.raises(SystemExit, match="2"):
        quickstart.main([*common, "--set", *SHORT, "run.seed", "9"])
    said = capfd.readouterr().err
    assert "run.seed was 3, is 9; give --overwrite to train anew" in said
    assert "prm (shapes_train) failed with code 2" in said
    assert [path.stat().st_mtime_ns for path in made] == before
