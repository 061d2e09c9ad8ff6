import json
import logging
import os

import pytest

from lib.engine.runs import (
    describe_environment,
    find_checkpoint,
    new_run,
    newest_run,
    read_lines,
    seconds_trained,
    start_logging,
)


def make_run(path, when, steps=(5,)):
    (path / "ckpt").mkdir(parents=True)
    (path / "config.yaml").write_text("{}")
    os.utime(path / "config.yaml", (when, when))
    for step in steps:
        (path / "ckpt" / f"model_step{step}.pth").touch()
    return path


def test_newest_run_is_the_one_started_last(tmp_path):
    make_run(tmp_path / "b" / "20250101-000000", 100)
    newest = make_run(tmp_path / "a" / "20240101-000000", 200)
    make_run(tmp_path / "quickstart", 150)
    make_run(tmp_path / "c" / "20260101-000000", 300, steps=())
    assert newest_run(tmp_path) == newest
    assert newest_run(newest) == newest


def test_no_run_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run with a checkpoint; train one"):
        newest_run(tmp_path / "nothing")


def test_newest_checkpoint_by_number(tmp_path):
    run = make_run(tmp_path, 1, steps=(9, 100, 20))
    assert find_checkpoint(run).name == "model_step100.pth"
    assert find_checkpoint(run, 20).name == "model_step20.pth"
    with pytest.raises(FileNotFoundError, match="there are: model_step9.pth, model_step20.pth"):
        find_checkpoint(run, 21)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        find_checkpoint(tmp_path / "other")


def test_new_runs_never_share_a_folder(tmp_path):
    first = new_run(tmp_path, "resnet18")
    assert first.parent == tmp_path / "resnet18"
    first.mkdir(parents=True)
    assert new_run(tmp_path, "resnet18") != first


def test_environment_is_plain_json():
    told = json.loads(json.dumps(describe_environment()))
    assert told["packages"]["torch"] and told["python"]
    assert told["git"] is None or len(told["git"]["commit"]) == 40


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match="lines.jsonl: a broken line"):
        read_lines(path)


def test_log_goes_to_terminal_and_file_once(tmp_path, capsys):
    start_logging(tmp_path / "a" / "log.txt")
    start_logging(tmp_path / "a" / "log.txt")
    try:
        logging.getLogger("lib.somewhere").info("hello")
    finally:
        for handler in list(logging.getLogger().handlers):
            if getattr(handler, "of_this_project", False):
                logging.getLogger().removeHandler(handler)
                handler.close()
    assert (tmp_path / "a" / "log.txt").read_text().count("hello") == 1
    assert capsys.readouterr().err.count("hello") == 1


def test_the_seconds_of_a_training_are_those_of_its_updates(tmp_path):
    assert seconds_trained(tmp_path) == 0
    entries = (
        {"iteration": iteration, "seconds": seconds, "total": 3.0}
        for iteration, seconds in ((10, 2.0), (20, 1.0), (25, 4.0))
    )
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert seconds_trained(tmp_path) == 20 + 10 + 20
