"""From the command line to a loss in few steps, so that a reader finds it."""

import traceback

import pytest

from tests.small_training import DATA, make_place, tool

AT_MOST = 8


class Reached(Exception):
    pass


def test_few_frames_from_main_to_the_first_loss(tmp_path, monkeypatch):
    def bag_loss(*_):
        raise Reached

    monkeypatch.chdir(tmp_path)
    make_place()
    monkeypatch.setattr("lib.modeling.criterion.bag_loss", bag_loss)
    with pytest.raises(Reached) as error:
        tool("train_net")(["--cfg", "small.yaml", *DATA, "--output", "run", "--threads", "1"])
    frames = [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    path = frames[frames.index("main") :]
    assert path[-1] == "bag_loss"
    assert len(path) <= AT_MOST, " > ".join(path)
