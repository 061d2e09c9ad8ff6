"""Tools as processes of their own, one or several that torchrun joins: for tests of tools."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.small_training import TOOLS

PATIENCE = 300
"""Seconds, on a busy machine."""


def start(tool, *options, ranks=None):
    """Starts a tool (`test_net`, `refine test` or a file), or ranks of it by tools/launch.py."""
    command = [sys.executable]
    file, *subcommand = str(tool).split()
    if ranks is not None:
        command += [str(TOOLS / "launch.py"), "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*command, str(TOOLS / Path(file).with_suffix(".py")), *subcommand, *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOOLS.parent)},
    )


def finished(process):
    """Waits for the end of a process, and of all that have its stderr; returns what it told."""
    return process.communicate(timeout=PATIENCE)[1]


def launch(tool, *options, ranks=2):
    """Runs ranks that have to end well; returns what they told."""
    process = start(tool, *options, ranks=ranks)
    told = finished(process)
    assert process.returncode == 0, told
    return told


def wait_for(process, condition):
    """Waits until `condition()` holds while a process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, finished(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)
