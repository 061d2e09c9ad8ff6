"""The tools on a dask cluster of two workers: its dead are reported, and nothing waits forever."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="needs the extra `dask`")

import dask
from distributed import LocalCluster

from lib import dask_cluster
from lib.command_line import Command, add_parallel_arguments, run_tool
from lib.dask_cluster import ClusterError, dask_client
from lib.parallel import for_each
from tests import cluster_work
from tests.proposals.test_tools import data  # noqa: F401 (a fixture)
from tests.small_training import tool


@pytest.fixture(scope="module")
def cluster():
    settings = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.admin.log-format": "%(message)s",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def run(cluster, capsys):
    def run(main, *arguments):
        on_cluster = ("--backend", "dask", "--scheduler", cluster.scheduler_address)
        code = main([*arguments, *on_cluster])
        return code, *capsys.readouterr()

    return run


def test_tools_work_on_the_cluster(run, data, monkeypatch):  # noqa: F811
    monkeypatch.chdir(data)  # the workers were started elsewhere
    cluster_work.check_a_tool(lambda *arguments: run(tool("proposals make"), *arguments), data)
    code, out, _ = run(tool("proposals check"), *cluster_work.PLACE)
    assert code == 1 and "2 of 3 images have readable proposals" in out


def test_an_image_that_kills_its_workers_is_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(cluster_work.main, "folder_or_death")
    cluster_work.check_the_dead_are_named(code, out, tmp_path)


def test_a_cluster_without_workers_is_an_error(cluster, monkeypatch, capsys):
    monkeypatch.setattr(dask_cluster, "PATIENCE_SECONDS", 1.0)

    def run(args):
        cluster.scale(0)
        for_each(cluster_work.wait_long, [(str(n), (n,)) for n in range(4)], 4)

    arguments = ("--backend", "dask", "--scheduler", cluster.scheduler_address)
    assert run_tool("", Command(run, add_parallel_arguments), arguments) == 2
    assert "no worker in the cluster for 1 s" in capsys.readouterr().err


def test_no_scheduler_answers(monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(ClusterError, match="tcp://127.0.0.1:9: no dask scheduler answers"):
        dask_client("tcp://127.0.0.1:9").__enter__()
    assert time.monotonic() - started < 60


def test_a_killed_scheduler_is_an_error(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s",
    }

    def start(code, *arguments):
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.Popen(
            command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )

    place = ("--scheduler-file", "scheduler.json")
    scheduler = start(
        "from distributed.cli.dask_scheduler import main; main()",
        *("--port", "0", "--no-dashboard", *place),
    )
    worker = start(
        "from distributed.cli.dask_worker import main; main()",
        *("--no-nanny", "--nthreads", "1", "--no-dashboard", *place),
    )
    try:
        wait_for(tmp_path / "scheduler.json")
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        tool = start(
            "import sys; from tests.cluster_work import main; sys.exit(main())",
            *("wait_long", "--backend", "dask", "--scheduler", address),
        )
        wait_for(tmp_path / "0 begins")
        scheduler.kill()
        _, err = tool.communicate(timeout=120)
        assert tool.returncode == 2 and "connection to the scheduler is lost" in err, err
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.communicate()


def wait_for(path, seconds=180):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.1)
