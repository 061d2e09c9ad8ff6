import pytest
import torch

from lib.engine.checkpoint import TRAINED_WITH, find_resumable, save_checkpoint

SETTINGS = {
    "solver": {"base_lr": 0.1, "steps": [3, 4]},
    "model": {"backbone_args": {"widths": [1, 2]}},
    "data": {"classes": ["a", "b"]},
}


def save(run, step, settings=SETTINGS):
    content = {"model": {"w": torch.ones(1)}, "step": step, TRAINED_WITH: settings}
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
        ("solver", {"base_lr": 0.2, "steps": [3, 4]}, "solver.base_lr is 0.1 there, 0.2 here"),
        ("solver", {"steps": [3, 4]}, "solver.base_lr is 0.1 there, None here"),
        ("data", {"classes": ["a"]}, r"data.classes is \['a', 'b'\] there, \['a'\] here"),
        ("model", {"backbone_args": {}}, r"model.backbone_args.widths is \[1, 2\] there, None"),
    ],
)
def test_another_training_is_refused(tmp_path, section, content, told):
    save(tmp_path, 5)
    with pytest.raises(ValueError, match=told):
        find_resumable(tmp_path, {**SETTINGS, section: content})


def test_many_differences_are_cut_short(tmp_path):
    save(tmp_path, 5, {"a": {str(n): n for n in range(9)}})
    with pytest.raises(ValueError, match=r"a\.3 is 3 there, None here; \.\.\.; name another"):
        find_resumable(tmp_path, {})
