"""Chains of tools: every step is run, how failures and signals end, and how much is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.pipeline import runner
from lib.pipeline.runner import duration, run_steps, seconds_left, side_by_side
from lib.pipeline.steps import Step


@pytest.fixture
def tools(tmp_path, monkeypatch):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/note.py").write_text(
        "import os, sys; print('why'); open(sys.argv[1], 'a').write(sys.argv[2]);"
        "assert 'CIM_IN_CHAIN' in os.environ;"
        "sys.exit(int(sys.argv[3]))"
    )
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    return tmp_path


def chain(tools, *codes):
    out = str(tools / "out")
    return [
        Step(f"s{n}", "data", f"Number {n}.", ("tools/note.py", out, f"{n}", f"{c}"))
        for n, c in codes
    ]


def test_a_failing_step_ends_the_chain_with_its_code(tools, caplog):
    caplog.set_level("INFO")
    with pytest.raises(SystemExit) as ended:
        run_steps(chain(tools, (1, 0), (2, 3), (3, 0)))
    assert ended.value.code == 3
    assert (tools / "out").read_text() == "12"
    assert "error: s2 (data) failed with code 3; the reason is above." in caplog.text
    assert "Run the same command again once that is fixed: it resumes here." in caplog.text
    seconds = run_steps(chain(tools, (1, 0), (2, 0), (3, 0)))
    assert (tools / "out").read_text() == "12123"  # every tool knows by itself what is done
    assert list(seconds) == ["s1 (data)", "s2 (data)", "s3 (data)"]
    assert min(seconds.values()) > 0


def test_a_step_says_what_it_does_and_its_command(tools, caplog):
    caplog.set_level("INFO")
    (step,) = chain(tools, (1, 0))
    run_steps([step._replace(command=(*step.command, "two words"))])
    told = ["\n[1/1] s1 (data): Number 1.", f"    python tools/note.py {tools}/out 1 0 'two words'"]
    assert caplog.messages == told
    caplog.clear()
    run_steps([step], show_commands=False)
    assert caplog.messages == told[:1]


def test_a_log_takes_what_the_tools_say(tools, caplog):
    log = tools / "logs/a.log"
    run_steps(chain(tools, (1, 0)), log=log)
    with pytest.raises(SystemExit, match="4"):
        run_steps(chain(tools, (2, 4)), log=log)
    assert log.read_text() == "why\nwhy\n"
    assert f"the reason is in {log}" in caplog.text


def test_what_is_left(tools, caplog):
    steps = chain(tools, (1, 0), (2, 0), (3, 0))
    estimates = {"s1": 60.0, "s2": 120.0, "s3": 600.0}
    assert seconds_left(steps, [], estimates) == 780
    assert seconds_left(steps, [180], estimates) == 2 * 720  # (60 + 180) / (60 + 60)
    assert seconds_left(steps, [180, 120], estimates) == 1.5 * 600
    assert seconds_left(steps, [3], estimates) == 720  # done before: says nothing of the speed
    assert seconds_left(steps, [60, 120, 600], estimates) == 0
    caplog.set_level("INFO")
    run_steps(steps, estimates)
    assert "[1/3] s1 (data): Number 1. About 13 min left in all." in caplog.text


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


SLOW = """
import signal, sys, time
def stop(*_):
    time.sleep(1)
    open(sys.argv[1], 'a').write('saved ')
    sys.exit(9)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
open(sys.argv[1] + '.ready', 'w')
time.sleep(300)
"""
CHAIN = """
import logging, sys
from pathlib import Path
from lib.pipeline import runner
from lib.pipeline.steps import Step
logging.basicConfig(level='INFO')
runner.ROOT = Path(sys.argv[1])
steps = [Step(f's{n}', 'x', '', ('tools/slow.py', sys.argv[1] + '/out')) for n in (1, 2)]
if sys.argv[2] == 'threads':
    work = lambda n: runner.run_steps(steps, log=Path(sys.argv[1], 'log'))
    runner.side_by_side(work, range(5), jobs=2)
else:
    runner.run_steps(steps)
"""


@pytest.mark.parametrize("how", ["alone", "threads"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_tool_may_end_as_it_wants(tools, number, how):
    """Ctrl-C reaches the whole group, SIGTERM this process alone; the chain waits for the tool."""
    (tools / "tools/slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-c", CHAIN, str(tools), how],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if (tools / "out.ready").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    time.sleep(1 if how == "threads" else 0)  # for the second one
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert (tools / "out").read_text() == "saved " * (2 if how == "threads" else 1)
    assert "s1 (x) was stopped. Run the same command again to resume." in said
    assert "s2 (x)" not in said


def test_side_by_side_nothing_begins_after_a_failure(tools):
    begun = []

    def work(code):
        begun.append(code)
        run_steps(chain(tools, (code, code)), log=tools / "log")

    with pytest.raises(SystemExit, match="7"):
        side_by_side(work, [0, 7, 0, 0, 0], jobs=1)
    assert begun == [0, 7]
    begun.clear()
    side_by_side(work, [0, 0, 0], jobs=2)
    assert begun == [0, 0, 0]
