"""What CONTRIBUTING.md says is enough to add something is enough: its examples, put in place."""

import importlib.util
import re
import sys
from pathlib import Path

import benchmarks
import cv2
import numpy as np
import pytest
import yaml

from lib.data import catalog, tags
from lib.modeling import backbones
from lib.proposals import readers
from lib.proposals.store import ProposalStore
from tests.backbone_chain import run_chain
from tests.docs.documents import ROOT, blocks
from tests.small_training import tool

PAGE = ROOT / "CONTRIBUTING.md"
EXAMPLES = {
    re.match(r"# (\S+)", block.text)[1]: block.text
    for block in blocks(PAGE)
    if block.language == "python"
}
LINES = dict(re.findall(r'`"([\w.]+)": (.+?),`', PAGE.read_text()))


def put_in_place(path, names):
    """Runs an example as the module it says it is; evaluates the line that registers it."""
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(Path(path).stem, None))
    exec(compile(EXAMPLES[path], path, "exec"), module.__dict__)
    ((name, line),) = [(n, v) for n, v in LINES.items() if n == names]
    sys.modules[path.removeprefix("tools/").removesuffix(".py").replace("/", ".")] = module
    return eval(line, {**vars(benchmarks), **module.__dict__, Path(path).stem: module})


def test_a_backbone(monkeypatch):
    plain = put_in_place("lib/modeling/backbones/plain.py", "plain")
    monkeypatch.setitem(backbones.BACKBONES, "plain", plain)
    prm, model, mask_rcnn = run_chain("plain", "{width: 16}")
    assert (prm.backbone.out_channels, model.Conv_Body.stride) == (32, 8)
    assert mask_rcnn.backbone.strides == [4, 8, 16]


def test_a_reader(monkeypatch, tmp_path):
    monkeypatch.setitem(readers.READERS, "npy", put_in_place("lib/proposals/readers/npy.py", "npy"))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((5, 6, 3), np.uint8))
    (tmp_path / "l.csv").write_text("a.png,x\n")
    masks = np.random.default_rng(0).random((4, 5, 6)) > 0.5
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks/a.npy", masks)
    words = ["--images", tmp_path, "--labels", tmp_path / "l.csv", "--name", "n"]
    words += ["--data-root", tmp_path / "root", "--format", "npy", "--source", tmp_path / "masks"]
    assert tool("proposals import")([*map(str, words), "--jobs", "1"]) == 0
    stored = ProposalStore(tmp_path / "root/proposals/n").load("a.png")
    assert np.array_equal(stored.regions.masks(), masks)


def test_a_form_of_labels(monkeypatch, tmp_path):
    read = put_in_place("lib/data/tags/jsonl.py", ".jsonl")
    monkeypatch.setitem(tags.READERS, ".jsonl", read)
    path = tmp_path / "l.jsonl"
    path.write_text('{"file": "a.png", "labels": ["dog", "cat"]}\n{"file": "b.png", "labels": []}')
    found = tags.read_tags(path)
    assert found.class_names == ("cat", "dog")
    assert found.labels == {"a.png": (0, 1), "b.png": ()}


def test_a_data_set(monkeypatch):
    monkeypatch.setitem(catalog._FILES, "pets_train", eval(LINES["pets_train"]))
    dataset = catalog.catalog("root")["pets_train"]
    assert dataset.images == Path("root/pets/images")
    assert dataset.proposals == Path("root/proposals/pets_train")


def test_a_benchmark(monkeypatch, capsys):
    run = put_in_place("tools/benchmarks/boxes.py", "boxes")
    monkeypatch.setitem(benchmarks.BENCHMARKS, "boxes", run)
    words = ["boxes", "--quick", "--device", "cpu", "--threads", "1"]
    assert tool("benchmark")(words) == 0
    assert "10 boxes" in capsys.readouterr().out


def test_every_example_is_put_in_place():
    assert set(LINES) == {"plain", "npy", ".jsonl", "pets_train", "boxes"}
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("name", ["ruff check", "ruff format", "shellcheck", "scripts/test.sh"])
def test_pre_commit_runs_what_ci_runs(name):
    assert "scripts/test.sh" in (ROOT / ".ci/run").read_text()
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in content["repos"] for hook in repo["hooks"]]
    assert any(name in entry for entry in entries)
    assert name.startswith("scripts") or name in (ROOT / "scripts/test.sh").read_text()


def test_the_citation_is_the_papers():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert content["cff-version"] == "1.2.0"
    assert {"title", "authors", "message", "license", "version"} <= content.keys()
    assert f'version="{content["version"]}"' in (ROOT / "setup.py").read_text()
    paper = content["preferred-citation"]
    readme = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    assert paper["title"] in readme
    for author in paper["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in readme
