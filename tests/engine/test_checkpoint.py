import pickle

import pytest
import torch
from torch import nn

from lib.engine.checkpoint import (
    CheckpointError,
    checkpoint_step,
    list_checkpoints,
    load_checkpoint,
    load_model,
    save_checkpoint,
)


def heads(num_classes, hidden=4):
    model = nn.Sequential()
    model.trunk = nn.Linear(3, hidden)
    model.classifier = nn.Linear(hidden, num_classes + 1)
    model.detector = nn.Linear(hidden, num_classes + 1)
    return model


def test_round_trip(tmp_path):
    model = heads(5)
    path = save_checkpoint(tmp_path / "ckpt", {"model": model.state_dict(), "step": 12})
    assert path.name == "model_step12.pth"
    content = load_checkpoint(path)
    assert content["step"] == 12
    other = heads(5)
    load_model(other, content["model"], path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_only_the_newest_are_kept_by_number_not_by_name(tmp_path):
    for step in (2, 10, 9, 100):
        save_checkpoint(tmp_path, {"model": {}, "step": step}, keep=3)
    (tmp_path / "model_step7.pth.part").touch()
    (tmp_path / "model_step_best.pth").touch()
    assert [checkpoint_step(p) for p in list_checkpoints(tmp_path)] == [9, 10, 100]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_what_was_just_written_is_never_removed(tmp_path):
    save_checkpoint(tmp_path, {"model": {}, "step": 50})
    save_checkpoint(tmp_path, {"model": {}, "step": 3}, keep=1)
    assert [checkpoint_step(p) for p in list_checkpoints(tmp_path)] == [3, 50]


def test_published_layout_and_prefix(tmp_path):
    model = heads(20)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save(
        {"step": 1, "train_size": 2, "batch_size": 4, "model": state, "optimizer": {}},
        tmp_path / "published.pth",
    )
    load_model(heads(20), load_checkpoint(tmp_path / "published.pth")["model"], "published.pth", 20)
    torch.save(state, tmp_path / "bare.pth")
    load_model(heads(20), load_checkpoint(tmp_path / "bare.pth")["model"], "bare.pth", 20)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_broken_files_say_which_and_what(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no.pth: no such checkpoint"):
        load_checkpoint(tmp_path / "no.pth")
    path = save_checkpoint(tmp_path, {"model": heads(5).state_dict(), "step": 1})
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole[:-1000]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="model_step1.pth: not a readable checkpoint"):
            load_checkpoint(path)
    torch.save({"model": Evil()}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="found a list"):
        load_checkpoint(path)
    torch.save({"model": {"a": 3}}, path)
    with pytest.raises(CheckpointError, match="not a mapping of names to tensors"):
        load_checkpoint(path)


def test_wrong_number_of_classes_in_words():
    with pytest.raises(CheckpointError) as error:
        load_model(heads(5), heads(20).state_dict(), "voc.pth", num_classes=5)
    assert str(error.value).startswith(
        "voc.pth: the checkpoint has 20 classes, the data set has 5; "
    )


def test_mismatch_lists_a_few_of_each_kind():
    state = heads(5).state_dict()
    del state["trunk.bias"]
    state["classifier.weight"] = torch.zeros(6, 9)
    for i in range(6):
        state[f"extra{i}"] = torch.zeros(())
    with pytest.raises(CheckpointError) as error:
        load_model(heads(5), state, "x.pth", num_classes=5)
    text = str(error.value)
    assert "1 missing (trunk.bias)" in text
    assert "6 unexpected (extra0, extra1, extra2, extra3, ...)" in text
    assert "1 wrongly shaped (classifier.weight is 6x9, expected 6x4)" in text


def test_other_widths_are_not_called_classes():
    with pytest.raises(CheckpointError, match="4 wrongly shaped"):
        load_model(heads(5), heads(5, hidden=7).state_dict(), "x.pth", num_classes=5)


def test_halves_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".model_step3.pth.x1.part").write_bytes(b"half")
    path = save_checkpoint(tmp_path, {"model": {}, "step": 4})
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, {"model": {}, "step": 1})
    before = path.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, {"model": {}, "step": 1})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model_step1.pth"]
