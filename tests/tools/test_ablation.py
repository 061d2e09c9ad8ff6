"""Variants over seeds, and what their stages learn from, with few images and updates."""

import importlib.util
import json
from pathlib import Path

import pytest

from lib.config import load_config

TOOLS = Path(__file__).parents[2] / "tools"
PARSED = (
    "evaluate.py",
    "generate_pseudo_labels.py",
    "test_mask_rcnn.py",
    "test_net.py",
    "train_mask_rcnn.py",
    "train_net.py",
)
"""Tools whose command lines are checked where they are not run."""
SHORT = ["solver.max_iter", "3", "solver.steps", "[2]", "prm.epochs", "1"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ablation(monkeypatch):
    """The tool, with the other tools called in this process: starting them takes longer."""
    module = load("ablation")
    module.called = []

    def run_tool(tool, *arguments, log=None):
        module.called.append((tool, log.stem if log else None))
        assert load(tool.removesuffix(".py")).main([str(a) for a in arguments]) == 0

    monkeypatch.setattr(module, "run_tool", run_tool)
    return module


def test_measures_every_variant_with_every_seed_once(ablation, tmp_path, capsys):
    output = tmp_path / "out"
    common = ["--output", str(output), "--data-root", str(tmp_path / "data"), "--jobs", "1"]
    common += ["--images", "6", "4", "--split", "val"]
    variants = ["--variants", "cim", "mil", "--seeds", "1", "2", "--updates", "2"]
    assert ablation.main([*common, *variants, "--set", *SHORT]) == 0
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

    ablation.called.clear()
    assert ablation.main([*common, *variants, "--set", *SHORT]) == 0
    assert "train_net.py" not in [tool for tool, _ in ablation.called]
    assert json.loads((output / "val.json").read_text()) == table
    (output / "mil-2" / "seed2" / "test" / "shapes_val" / "metrics.json").unlink()
    assert ablation.main([*common, *variants, "--set", *SHORT]) == 0
    assert [tool for tool, log in ablation.called if log == "mil-2-seed2"] == [
        "test_net.py",
        "evaluate.py",
    ]

    assert ablation.main([*common, *variants, "--set", *SHORT, "prm.smooth", "1"]) == 2
    assert "made with another --cfg, --set" in capsys.readouterr().err

    analyse = load("analyse_instances").main
    clusters = str(tmp_path / "clusters")
    of_seed = ["--clusters", clusters, "--data-root", str(tmp_path / "data")]
    weights = str(output / "intermediate" / "seed1" / "prm.pth")
    cfg = str(TOOLS.parent / "configs" / "resnet18_shapes.yaml")
    val = ["--dataset", "shapes_val", "--prm", weights, "--cfg", cfg]
    assert load("assign_clusters").main([*val, *of_seed]) == 0
    assert analyse([str(output / "mil-2" / "seed1"), *of_seed]) == 0
    assert rows_of(capsys) == ["clusters", "MIL branch"]

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
    module = load("ablation")
    calls = []

    def run_tool(tool, *arguments, log=None):
        words = [str(a) for a in arguments]
        if tool in PARSED:
            load(tool.removesuffix(".py")).parse(words)
        calls.append((tool, words))
        if tool == "evaluate.py":
            metrics = Path(words[words.index("--detections") + 1]).with_name("metrics.json")
            metrics.parent.mkdir(parents=True)
            metrics.write_text(json.dumps({"metrics": dict.fromkeys(module.METRICS, len(calls))}))

    monkeypatch.setattr(module, "run_tool", run_tool)
    output = str(tmp_path)
    assert module.main(["--variants", "cim_plus", "--seeds", "4", "--output", output]) == 0
    cim, plus = str(tmp_path / "cim" / "seed4"), str(tmp_path / "cim_plus" / "seed4")

    def where(name, *options):
        return [n for n, (tool, w) in enumerate(calls) if tool == name and set(options) <= set(w)]

    order = [
        where("train_net.py", cim, "shapes_train"),
        where("test_net.py", cim, "shapes_test"),
        where("test_net.py", cim, "shapes_train", "--image-labels"),
        where("generate_pseudo_labels.py", cim, "shapes_train"),
        where("train_mask_rcnn.py", cim, plus, "shapes_train", "4"),
        where("test_mask_rcnn.py", plus, "shapes_test"),
    ]
    assert all(len(found) == 1 for found in order) and order == sorted(order)
    assert (tmp_path / "test.md").read_text().count("cim_plus") == 1
    calls.clear()
    assert module.main(["--variants", "cim", "cim_plus", "--seeds", "4", "--output", output]) == 0
    assert not where("train_net.py") and not where("train_mask_rcnn.py")


def test_every_variant_is_a_configuration_of_its_own(ablation):
    cfg = TOOLS.parent / "configs" / "resnet18_shapes.yaml"
    configs = [load_config(cfg, overrides) for overrides in ablation.VARIANTS.values()]
    assert all(a != b for n, a in enumerate(configs) for b in configs[:n])
    assert load_config(cfg) == load_config(cfg, ablation.VARIANTS[ablation.REFERENCE])


def test_a_failing_tool_is_named(tmp_path, monkeypatch):
    module = load("ablation")
    monkeypatch.setattr(module, "TOOLS", tmp_path)
    (tmp_path / "tool.py").write_text("import sys; print('why'); sys.exit(int(sys.argv[1]))")
    module.run_tool("tool.py", 0, log=tmp_path / "log")
    with pytest.raises(SystemExit, match=r"tool\.py ended with code 3; see .*log"):
        module.run_tool("tool.py", 3, log=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "why\nwhy\n"
