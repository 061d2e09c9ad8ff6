import pytest
import torch

from lib.engine.checkpoint import MADE_FROM, find_resumable, save_checkpoint

SETTINGS = {
    "solver": {"base_lr": 0.1, "steps": [3, 4]},
    "model": {"backbone_args": {"widths": [1, 2]}},
    "data": {"classes": ["a", "b"]},
}


def save(run, step, settings=SETTINGS):
    content = {"model": {"w": torch.ones(1)}, "step": step, MADE_FROM: settings}
    save_checkpoint(run / "ckpt", content)


def test_nothing_to_go_on_with(tmp_path):
    assert find_resumable(tmp_path / "new", SETTINGS) is None


def test_the_newest_checkpoint_of_the_same_training(tmp_path):
    for step in (5, 10, 9):
        save(tmp_path, step)
    same = {**SETTINGS, "solver": {"steps": (3, 4), "base_lr": 0.1}}
    assert find_resumable(tmp_path, same)["step"] == 10


def test_a_training_begun_under_an_older_name_of_a_key_goes_on(tmp_path):
    save(tmp_path, 5, {**SETTINGS, "loss": {"refine_iou": 3.0}})
    same = {**SETTINGS, "loss": {"refine_integrity": 3.0}}
    assert find_resumable(tmp_path, same)["step"] == 5


@pytest.mark.parametrize(
    ("section", "content", "told"),
    [
        ("solver", {"base_lr": 0.2, "steps": [3, 4]}, "solver.base_lr was 0.1, is 0.2"),
        ("solver", {"steps": [3, 4]}, "solver.base_lr was 0.1, is None"),
        ("data", {"classes": ["a"]}, r"data.classes was \['a', 'b'\], is \['a'\]"),
        ("model", {"backbone_args": {}}, r"model.backbone_args.widths was \[1, 2\], is None"),
    ],
)
def test_another_training_is_refused(tmp_path, section, content, told):
    save(tmp_path, 5)
    with pytest.raises(ValueError, match=told):
        find_resumable(tmp_path, {**SETTINGS, section: content})


def test_many_differences_are_cut_short(tmp_path):
    save(tmp_path, 5, {"a": {str(n): n for n in range(9)}})
    with pytest.raises(ValueError, match=r"a\.3 was 3, is None; \.\.\.; name another"):
        find_resumable(tmp_path, {})


def test_overwriting_begins_anew_only_what_is_out_of_date(tmp_path, caplog):
    save(tmp_path, 5)
    assert find_resumable(tmp_path, SETTINGS, overwrite=True)["step"] == 5
    assert not caplog.text
    other = {**SETTINGS, "data": {"classes": ["a"]}}
    assert find_resumable(tmp_path, other, overwrite=True) is None
    assert "out of date, trained anew: data.classes was ['a', 'b'], is ['a']" in caplog.text


def test_a_run_of_an_earlier_version_is_not_resumed(tmp_path):
    save_checkpoint(tmp_path / "ckpt", {"model": {"w": torch.ones(1)}, "step": 5})
    with pytest.raises(ValueError, match="does not say what it was made from; name another"):
        find_resumable(tmp_path, SETTINGS)
