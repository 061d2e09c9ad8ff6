"""Variants over seeds, and what their stages learn from, with few images and updates."""

import json
from pathlib import Path

import pytest

from lib.analysis.ablation import METRICS, REFERENCE, VARIANTS
from lib.config import load_config
from lib.files import write_json
from lib.pipeline import runner
from tests.docs.checks import parse_with_tool
from tests.in_process import run_tools_here
from tests.small_training import tool

ROOT = Path(__file__).parents[2]
SHORT = ["solver.max_iter", "3", "solver.steps", "[2]", "prm.epochs", "1"]


@pytest.fixture
def called(monkeypatch):
    """(tool, log) of the tools called, in this process: starting others takes longer."""
    calls = []
    run_tools_here(monkeypatch, lambda command, log: calls.append((command[0], log and log.stem)))
    return calls


def test_measures_every_variant_with_every_seed_once(called, tmp_path, capsys):
    output = tmp_path / "out"
    common = ["--output", str(output), "--data-root", str(tmp_path / "data"), "--jobs", "1"]
    common += ["--images", "6", "4", "--split", "val"]
    variants = ["--variants", "cim", "mil", "--seeds", "1", "2", "--updates", "2"]
    assert tool("study ablation")([*common, *variants, "--set", *SHORT]) == 0
    table = json.loads((output / "val.json").read_text())
    assert {name: list(of_seed) for name, of_seed in table.items()} == {
        "cim-2": ["1", "2"],
        "mil-2": ["1", "2"],
    }
    for name, of_seed in table.items():
        for seed, metrics in of_seed.items():
            run = output / name / f"seed{seed}"
            written = json.loads((run / "test" / "shapes_val" / "metrics.json").read_text())
            assert metrics == written["metrics"]
            config = load_config(run / "config.yaml")
            assert (config.run.seed, config.solver.max_iter) == (int(seed), 2)
            assert config.solver.steps == (1,)  # at two thirds, as configured
            assert config.model.num_stages == (3 if name == "cim-2" else 0)
    told = capsys.readouterr().out
    assert (output / "val.md").read_text() in told and "| cim-2 | 2 |" in told
    assert (output / "val.svg").read_text().count("<title>cim-2: ") == 4

    logs = [f"{variant}-2-seed{seed}" for variant in ("cim", "mil") for seed in (1, 2)]
    assert [log for name, log in called if name == "tools/train_net.py"] == logs
    assert [log for name, log in called if name == "tools/prm.py"] == [
        *("seed1", "seed1"),
        *("seed2", "seed2"),
    ]

    networks = [*output.rglob("*.pth")]
    before = [path.stat().st_mtime_ns for path in networks]
    assert len(networks) == 2 + 4
    (output / "mil-2" / "seed2" / "test" / "shapes_val" / "metrics.json").unlink()
    assert tool("study ablation")([*common, *variants, "--set", *SHORT]) == 0
    assert [path.stat().st_mtime_ns for path in networks] == before
    assert json.loads((output / "val.json").read_text()) == table

    with pytest.raises(SystemExit, match="2"):
        tool("study ablation")([*common, *variants, "--set", *SHORT, "prm.smooth", "1"])
    assert "prm.smooth was 3, is 1; give --overwrite" in capsys.readouterr().err

    analyse = tool("study instances")
    clusters = str(tmp_path / "clusters")
    of_seed = ["--clusters", clusters, "--data-root", str(tmp_path / "data")]
    weights = str(output / "intermediate" / "seed1" / "prm.pth")
    cfg = str(ROOT / "configs" / "resnet18_shapes.yaml")
    val = ["--dataset", "shapes_val", "--prm", weights, "--cfg", cfg]
    assert tool("prm clusters")([*val, *of_seed]) == 0
    assert analyse([str(output / "mil-2" / "seed1"), *of_seed]) == 0
    assert rows_of(capsys) == ["clusters", "MIL branch"]
    assert tool("study steps")([*val[:4], *of_seed]) == 0
    assert "\nclusters an image " in capsys.readouterr().out

    runs = [str(output / "cim-2" / f"seed{seed}") for seed in (1, 2)]
    place = ["--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "a.json")]
    assert analyse([*runs, *place]) == 0
    stages = ["stage 1", "stage 2", "stage 3"]
    assert rows_of(capsys) == [*stages, "MIL branch", *stages, "all stages"]
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["dataset"] == "shapes_val"
    for of_runs in (written["taught"], written["heads"]):
        assert list(of_runs) == runs
        for steps in of_runs.values():
            for measures in steps["2"].values():
                shares = [v for n, v in measures.items() if "instances" not in n and v is not None]
                assert shares and all(0 <= share <= 1 + 1e-9 for share in shares)


def rows_of(capsys):
    """The second column of the tables that were printed."""
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    names = [cells[2].strip() for cells in lines if len(cells) > 2]
    return [name for name in names if name and name != "---"]


def test_cim_plus_is_trained_on_what_cim_of_its_seed_found(tmp_path, monkeypatch):
    calls = []

    def run_tool(command, log=None):
        name, *words = command
        assert parse_with_tool(ROOT / name, words)[1] is None
        calls.append((name, words))
        if name == "tools/evaluate.py":
            run = Path(words[words.index("--run") + 1])
            metrics = dict.fromkeys(METRICS, len(calls))
            write_json(run / "test/shapes_test/metrics.json", {"metrics": metrics})
        return 0

    monkeypatch.setattr(runner, "run_tool", run_tool)
    output = ["--seeds", "4", "--output", str(tmp_path)]
    assert tool("study ablation")(["--variants", "cim_plus", *output]) == 0
    cim, plus = str(tmp_path / "cim" / "seed4"), str(tmp_path / "cim_plus" / "seed4")

    def where(name, *options):
        name = f"tools/{name}"
        return [n for n, (file, w) in enumerate(calls) if file == name and {*options} <= {*w}]

    order = [
        where("train_net.py", cim, "shapes_train"),
        where("test_net.py", cim, "shapes_test"),
        where("test_net.py", cim, "shapes_train", "--image-labels"),
        where("generate_pseudo_labels.py", cim, "shapes_train"),
        where("refine.py", "train", cim, plus, "shapes_train", "4"),
        where("refine.py", "test", plus, "shapes_test"),
        where("evaluate.py", plus, "shapes_test"),
    ]
    assert all(len(found) == 1 for found in order) and order == sorted(order)
    assert (tmp_path / "test.md").read_text().count("cim_plus") == 1
    calls.clear()
    assert tool("study ablation")(["--variants", "cim", "cim_plus", *output]) == 0
    assert len(where("train_net.py")) == 1  # for both


def test_every_variant_is_a_configuration_of_its_own():
    cfg = ROOT / "configs" / "resnet18_shapes.yaml"
    configs = [load_config(cfg, overrides) for overrides in VARIANTS.values()]
    assert all(a != b for n, a in enumerate(configs) for b in configs[:n])
    assert load_config(cfg) == load_config(cfg, VARIANTS[REFERENCE])
