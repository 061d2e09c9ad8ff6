"""Chains of tools: done once, gone on with, and how much is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.engine.stages import Stage, duration, run_stages, seconds_left
from lib.files import read_json


@pytest.fixture
def tools(tmp_path):
    (tmp_path / "note.py").write_text(
        "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit(int(sys.argv[3]))"
    )
    return tmp_path


def pipeline(tools, *codes):
    out = str(tools / "out")
    return [Stage(f"s{n}", f"Number {n}.", ["note.py", out, f"{n}", f"{c}"]) for n, c in codes]


def test_what_failed_is_gone_on_with(tools, caplog):
    caplog.set_level("INFO")
    record = tools / "stages.json"
    assert run_stages(pipeline(tools, (1, 0), (2, 3), (3, 0)), record, tools=tools) is None
    assert (tools / "out").read_text() == "12"
    assert "note.py ended with code 3; the reason is above" in caplog.text
    content = read_json(record)
    content["s2"]["command"][-1] = "0"  # as if the reason were gone
    record.write_text(__import__("json").dumps(content))
    seconds = run_stages(pipeline(tools, (1, 0), (2, 0), (3, 0)), record, tools=tools)
    assert (tools / "out").read_text() == "1223"
    assert seconds.keys() == {"s1", "s2", "s3"}
    assert "[1/3] s1: done before" in caplog.text


def test_other_arguments_are_another_chain(tools, caplog):
    record = tools / "stages.json"
    assert run_stages(pipeline(tools, (1, 0)), record, tools=tools)
    changed = [Stage("s1", "", ["note.py", "elsewhere", "1", "0"])]
    assert run_stages(changed, record, tools=tools) is None
    assert "was made with other arguments (note.py" in caplog.text


def test_what_is_left(tools, caplog):
    stages = pipeline(tools, (1, 0), (2, 0), (3, 0))
    estimates = {"s1": 60.0, "s2": 120.0, "s3": 600.0}
    assert seconds_left(stages, {}, estimates) == 780
    spent = {"s1": {"seconds": 180.0, "done": True}, "s2": {"seconds": 40.0, "done": False}}
    assert seconds_left(stages, spent, estimates) == (240 - 40) + 1200
    spent["s2"]["seconds"] = 1000.0
    assert seconds_left(stages, spent, estimates) == 1200
    done = {"seconds": 1.0, "done": True}
    assert seconds_left(stages, {s.name: done for s in stages}, estimates) == 0
    caplog.set_level("INFO")
    assert run_stages(stages, tools / "stages.json", estimates, tools)
    assert "[1/3] s1: Number 1. (about 13 min left in all)" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (5400, "1.5 hours"),
        (200000, "2.3 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_interrupted_tool_may_end_as_it_wants(tools):
    """Ctrl-C reaches the whole group; the tool saves, and the chain waits for it."""
    (tools / "slow.py").write_text(
        "import signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(1)\n"
        "    open(sys.argv[1], 'w').write('saved')\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "open(sys.argv[1] + '.ready', 'w')\n"
        "time.sleep(300)\n"
    )
    out = tools / "out"
    code = (
        "import logging, sys; from pathlib import Path; from lib.engine.stages import *\n"
        "logging.basicConfig(level='INFO')\n"
        f"stage = Stage('slow', '', ['slow.py', {str(out)!r}])\n"
        f"place = Path({str(tools)!r})\n"
        "sys.exit(run_stages([stage], place / 'stages.json', tools=place) is None)"
    )
    root = str(Path(__file__).parents[2])
    chain = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if (tools / "out.ready").exists() or chain.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(chain.pid, signal.SIGINT)
    _, said = chain.communicate(timeout=120)
    assert chain.returncode == 1, said
    assert out.read_text() == "saved"
    assert "slow.py ended with code 130. Run the same command again" in said
    assert read_json(tools / "stages.json")["slow"]["done"] is False
