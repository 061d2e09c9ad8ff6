"""The quickstart from beginning to end, with few images and updates."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "tools" / "quickstart.py"
SHORT = ["solver.max_iter", "3", "solver.steps", "[2]", "prm.epochs", "1"]


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_goes_from_nothing_to_a_summary_and_is_not_done_twice(quickstart, tmp_path, capfd):
    run = tmp_path / "run"
    common = ["--output", str(run), "--data-root", str(tmp_path / "data"), "--images", "6", "4"]
    assert quickstart.main([*common, "--set", *SHORT]) == 0
    assert "Mask AP on the test images" in capfd.readouterr().out

    summary = json.loads((run / "summary.json").read_text())
    assert summary["metrics"].keys() >= {"ap25", "ap50", "ap70", "ap75"}
    assert all(0 <= value <= 1 for value in summary["metrics"].values())
    stages = {name: seconds for name, seconds in summary["seconds"].items() if name != "total"}
    assert "train" in stages and min(stages.values()) > 0
    assert summary["seconds"]["total"] == pytest.approx(sum(stages.values()), abs=0.1)
    missing = [path for path in summary["paths"].values() if not Path(path).exists()]
    assert not missing
    labels = json.loads(Path(summary["paths"]["pseudo_labels"]).read_text())
    assert len(labels["images"]) == 6

    weights = sorted((run / "ckpt").iterdir())
    before = [path.stat().st_mtime_ns for path in weights]
    assert quickstart.main([*common, "--set", *SHORT]) == 0
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert json.loads((run / "summary.json").read_text()) == summary

    assert quickstart.main([*common, "--set", *SHORT, "run.seed", "9"]) == 1
    assert "made with other arguments" in capfd.readouterr().err
