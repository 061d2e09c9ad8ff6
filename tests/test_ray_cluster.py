"""The tools on a ray cluster of two workers: its dead are reported, and nothing waits forever.

The cluster and the tools run in processes of their own: ray leaves threads in one that used it,
which the forks of other tests do not survive.
"""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import cluster_work
from tests.proposals.test_tools import data  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[1]
LIMIT = 300

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"
)


class Nodes:
    """tests/ray_nodes.py, at work."""

    def __init__(self):
        self.process = start("-m", "tests.ray_nodes", cwd=ROOT, stdin=subprocess.PIPE)
        self.address = self.process.stdout.readline().strip()

    def do(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", self.process.communicate(timeout=LIMIT)


def start(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def nodes():
    nodes = Nodes()
    assert nodes.address, nodes.process.communicate(timeout=LIMIT)[1]
    yield nodes
    nodes.process.communicate(timeout=LIMIT)  # closes its input


@pytest.fixture
def begin(nodes, tmp_path):
    """Starts a program on the cluster, which is a module or a file, in the test's folder."""
    begun = []

    def begin(*arguments):
        on_cluster = ("--backend", "ray", "--scheduler", nodes.address)
        begun.append(start(*arguments, *on_cluster, cwd=tmp_path))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()


def end_of(process):
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def test_a_tool_works_on_the_cluster(begin, data):  # noqa: F811
    tool = ROOT / "tools" / "make_proposals.py"
    cluster_work.check_a_tool(lambda *arguments: end_of(begin(tool, *arguments)), data)


def test_an_image_that_kills_its_workers_is_named(begin, tmp_path):
    code, out, err = end_of(begin("-m", "tests.cluster_work", "folder_or_death"))
    cluster_work.check_the_dead_are_named(code, out, tmp_path)
    assert "raylet" not in err  # ray's own paragraphs


def test_nobody_answers(tmp_path):
    process = start(
        *("-m", "tests.cluster_work", "wait_long", "--backend", "ray"),
        *("--scheduler", "127.0.0.1:9"),
        cwd=tmp_path,
    )
    code, _, err = end_of(process)
    assert code == 2 and err.startswith("error: 127.0.0.1:9: no ray cluster answers")
    assert err.count("\n") == 1


def when_at_work(begin, folder, *options):
    """A program whose workers have begun to wait for ten minutes."""
    process = begin("-m", "tests.cluster_work", "wait_long", *options)
    deadline = time.monotonic() + LIMIT
    while not any(folder.glob("* begins")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return process


def test_a_head_that_does_not_answer_is_an_error(nodes, begin, tmp_path):
    process = when_at_work(begin, tmp_path, "--head-patience", "4")
    nodes.do("freeze head")
    code, _, err = end_of(process)
    nodes.do("thaw head")
    assert code == 2 and err.splitlines()[-1].startswith("error: the head of the ray cluster has")


def test_a_cluster_without_workers_is_an_error(nodes, begin, tmp_path):
    """The last one: it ends them."""
    process = when_at_work(begin, tmp_path, "--patience", "1")
    nodes.do("end workers")
    code, _, err = end_of(process)
    assert code == 2 and err.splitlines()[-1].startswith("error: the cluster has had no worker for")
