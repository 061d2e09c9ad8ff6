import os
import time

import numpy as np
import pytest
import torch

from lib import provenance
from lib.provenance import Memory, changes, file_fingerprint, fingerprint, listed, summary


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        ([["a"], "b"], ["a", ["b"]]),
        ("1", 1),
        (1, 1.0),
        (1, True),
        (b"1", "1"),
        (None, "None"),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ({"a": {"b": 1}}, {"a": 1, "b": 1}),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(4, np.float32), np.zeros(4, np.int32)),
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)),
        (np.zeros((0, 2)), np.zeros((2, 0))),
    ],
)
def test_other_values_have_other_fingerprints(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_equal_values_have_equal_fingerprints():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    grid = np.arange(6).reshape(2, 3)
    assert fingerprint(grid.T) == fingerprint(grid.T.copy())
    assert fingerprint(torch.from_numpy(grid).T) == fingerprint(torch.from_numpy(grid.T.copy()))
    assert fingerprint(torch.tensor(3.0)) == fingerprint(torch.tensor(3.0))


def test_changes_are_told_in_words():
    before = {"solver": {"lr": 0.1, "steps": [1]}, "images": fingerprint(1), "gone": None}
    assert changes(before, {**before, "solver": {"steps": (1,), "lr": 0.1}}) == []
    now = {"solver": {"lr": 0.2, "steps": [1], "new": {}}, "images": fingerprint(2)}
    assert changes(before, now) == [
        "solver.lr was 0.1, is 0.2",
        "solver.new was None, is {}",
        "images changed",
    ]
    assert changes(None, now) == ["it does not say what it was made from"]
    assert changes({"options": {}}, {"options": {"a": 1}}) != []
    assert listed(["a", "b", "c", "d", "e"]) == "a; b; c; d; ..."
    assert summary([["a"], ["b", "a"], []]) == "a (2); b (1)"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files that have not been touched for a while, and a count of how often they are read."""
    (tmp_path / "files/sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp_path / "files" / name).write_text(name)
    monkeypatch.setattr(provenance, "_RECENT", 0)
    read = []

    def reader(path):
        read.append(path.name)
        return file_fingerprint(path)

    def look(names=("a", "sub/b"), root="root"):
        read.clear()
        found = Memory(tmp_path / root).read(tmp_path / "files", names, reader)
        return found, sorted(read)

    return tmp_path / "files", look


def test_a_file_is_read_once(files):
    folder, look = files
    first, read = look()
    assert first == {name: file_fingerprint(folder / name) for name in ("a", "sub/b")}
    assert read == ["a", "b"]
    assert look() == (first, [])
    assert look(root="other") == (first, ["a", "b"])

    os.utime(folder / "a", ns=(1, 1))  # as a copy on another machine would be
    assert look() == (first, ["a"])
    assert look(["sub/b", "gone"]) == ({"sub/b": first["sub/b"]}, [])
    assert look() == (first, [])


def test_a_change_is_noticed_though_size_and_mtime_are_kept(files):
    folder, look = files
    first, _ = look()
    state = (folder / "a").stat()
    (folder / "a").write_text("x")
    os.utime(folder / "a", ns=(state.st_atime_ns, state.st_mtime_ns))
    now, read = look()
    assert read == ["a"] and now["a"] != first["a"] and now["sub/b"] == first["sub/b"]


def test_what_has_just_been_written_is_looked_at_again(files, monkeypatch):
    folder, look = files
    monkeypatch.setattr(provenance, "_RECENT", 10**12)
    look()
    assert look()[1] == ["a", "b"]


def test_a_memory_that_is_broken_or_cannot_be_kept_costs_time_only(files, tmp_path, caplog):
    _, look = files
    first, _ = look()
    (memory,) = (tmp_path / "root/fingerprints").iterdir()
    memory.write_text(memory.read_text()[:20])
    assert look() == (first, ["a", "b"])
    (tmp_path / "blocked").write_text("a file, so no folder can be made there")
    assert look(root="blocked/root") == (first, ["a", "b"])
    assert "not written" in caplog.text


def test_an_interruption_keeps_what_was_read(files):
    folder, look = files
    (folder / "c").mkdir()  # cannot be read as a file
    with pytest.raises(IsADirectoryError):
        look(["a", "c"])
    assert look(["a"])[1] == []


@pytest.mark.slow
def test_a_second_look_at_10000_files_takes_a_second(tmp_path):
    names = [f"{n}.jpg" for n in range(10_000)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 50)
    time.sleep(0.1)
    memory = Memory(tmp_path / "root")
    first = memory.read(tmp_path, names)
    start = time.perf_counter()
    assert memory.read(tmp_path, names) == first
    assert time.perf_counter() - start < 2
