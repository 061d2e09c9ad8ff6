"""Golden vectors: numbers of the published implementation, in files that the tests compare with.

`pytest tests/parity` takes those in tests/golden, `pytest tests/parity --golden DIR` those in DIR
or its sub-folders. A test says which files it is about and runs once for each of them:

    @pytest.mark.golden("heads_*.npz")
    def test_something(golden):
        golden.check("loss_total", total, rtol=1e-6)    # compares with the entry of that name

`--device cuda` computes heads and whole networks on a GPU, in float32 without TF32. Tolerances are
GPU_TOLERANCE times as wide there; what is to be equal stays so.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

DEFAULT = Path(__file__).parents[1] / "golden"
CHECKED = pytest.StashKey[dict]()
GPU_TOLERANCE = 50


class Golden:
    """One file of golden vectors."""

    def __init__(self, path, config):
        self.path = path
        self.config = config

    @cached_property
    def data(self):
        """The content: arrays by name of an .npz, whatever a .json holds."""
        if self.path.suffix == ".json":
            return json.loads(self.path.read_text())
        with np.load(self.path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def __getitem__(self, name):
        return self.data[name]

    @property
    def device(self):
        return self.config.getoption("--device", "cpu")

    def tensor(self, name):
        """An array on the device of the run."""
        return torch.from_numpy(self[name]).to(self.device)

    @property
    def kind(self):
        """heads, prm, agpl; of a backbone's files model, state_dict, train_step, tta."""
        for kind in ("state_dict", "train_step", "model", "tta"):
            if self.path.stem.endswith(f"_{kind}"):
                return kind
        return self.path.stem.split("_")[0]

    def sibling(self, name):
        """The file of that name, None if it is not there."""
        found = golden_files(self.config, name)
        return Golden(found[0], self.config) if found else None

    def check(self, name, actual, rtol=0.0, atol=0.0, expected=None):
        """Compares with the entry `name` (or with `expected` of it) and counts it."""
        expected = self[name] if expected is None else expected
        if isinstance(actual, torch.Tensor):
            actual = actual.detach().cpu()
        if self.device != "cpu":
            rtol, atol = GPU_TOLERANCE * rtol, GPU_TOLERANCE * atol
        np.testing.assert_allclose(
            np.asarray(actual),
            np.asarray(expected),
            rtol=rtol,
            atol=atol,
            err_msg=f"{self.path}: {name}",
        )
        self.config.stash[CHECKED][self.kind].add((self.path, name))


def golden_files(config, pattern):
    """The files of a name pattern in the folder that the run is about."""
    return sorted(config.getoption("--golden", DEFAULT).rglob(pattern))


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        type=Path,
        default=DEFAULT,
        metavar="DIR",
        help="folder of golden vectors (default: tests/golden)",
    )
    parser.addoption("--device", default="cpu", help="of heads and networks (default: cpu)")


def pytest_configure(config):
    config.addinivalue_line("markers", "golden(pattern): runs once for every golden file like it")
    config.stash[CHECKED] = defaultdict(set)
    if config.getoption("--device", "cpu") != "cpu":
        torch.backends.cudnn.allow_tf32 = False
    folder = config.getoption("--golden", DEFAULT)
    if not folder.is_dir():
        raise pytest.UsageError(f"--golden {folder}: no such folder")


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    (pattern,) = marker.args
    files = golden_files(metafunc.config, pattern)
    none = pytest.param(None, marks=pytest.mark.skip(reason=f"no golden file {pattern}"), id="none")
    params = [pytest.param(path, id=path.stem) for path in files] or [none]
    metafunc.parametrize("golden", params, indirect=True)


@pytest.fixture
def golden(request):
    return Golden(request.param, request.config)


def pytest_terminal_summary(terminalreporter, config):
    checked = config.stash[CHECKED]
    if not checked:
        return
    terminalreporter.section("golden vectors")
    for kind, entries in sorted(checked.items()):
        files = len({path for path, _ in entries})
        terminalreporter.write_line(f"{kind}: {len(entries)} vectors of {files} files")
    total = sum(len(entries) for entries in checked.values())
    folder = config.getoption("--golden", DEFAULT)
    terminalreporter.write_line(f"{total} golden vectors checked, from {folder}")
