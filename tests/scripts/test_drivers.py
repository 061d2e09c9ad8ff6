"""The drivers are bash, name their variables, and hand everything to tools/steps.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.pipeline.drivers import VARIABLES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", VARIABLES)
def test_they_are_bash_and_say_how_to_call_them(script):
    path = ROOT / "scripts" / f"{script}.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    usage = path.read_text()
    assert f"bash scripts/{script}.sh" in usage
    own = {*VARIABLES[script]} - {"json", "images", "labels", "name"}  # these: in common words
    missing = [name for name in own if name not in usage]
    assert not missing


@pytest.mark.parametrize("script", VARIABLES)
def test_words_and_variables_reach_the_tool(script, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport os, sys\nprint(sys.argv[1:], os.environ['name'])"
    )
    python.chmod(0o755)
    process = run(script, "a b", "c", name="my own", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert process.stdout == f"{['tools/steps.py', script, 'a b', 'c']} my own\n"


def test_errors_are_a_line(tmp_path):
    process = run("train_CIM", labels="l.csv", PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    assert process.returncode == 2
    assert process.stderr == "error: labels= needs images=, the folder of the images\n"


def run(script, *words, **variables):
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / f"{script}.sh"), *words],
        env={"PYTHONPATH": str(ROOT), "CIM_VENV": "none", **variables},
        capture_output=True,
        text=True,
    )
