"""The tools on a dask cluster of two workers: its dead are reported, and nothing waits forever."""

import logging
import time

import pytest

pytest.importorskip("distributed", reason="needs the extra `dask`")

import dask
from distributed import LocalCluster

from lib import cluster as clusters
from lib.cluster import ClusterError
from lib.command_line import errors_in_a_line
from lib.dask_cluster import dask_workers
from lib.parallel import for_each
from tests import cluster_work
from tests.proposals.test_tools import data  # noqa: F401 (a fixture)
from tools import check_proposals, make_proposals


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
    cluster_work.check_a_tool(lambda *arguments: run(make_proposals.main, *arguments), data)
    code, out, _ = run(check_proposals.main, *cluster_work.PLACE)
    assert code == 1 and "2 of 3 images have readable proposals" in out


def test_an_image_that_kills_its_workers_is_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(cluster_work.main, "folder_or_death")
    cluster_work.check_the_dead_are_named(code, out, tmp_path)


def test_a_cluster_without_workers_is_an_error(cluster, monkeypatch, capsys):
    monkeypatch.setattr(clusters, "PATIENCE_SECONDS", 1.0)

    @errors_in_a_line
    def main(argv=None):
        with dask_workers(cluster.scheduler_address):
            cluster.scale(0)
            for_each(cluster_work.wait_long, [(str(n), (n,)) for n in range(4)], 4)
        return 0

    assert main() == 2
    assert "had no worker for 1 s" in capsys.readouterr().err


def test_no_scheduler_answers(monkeypatch):
    monkeypatch.setattr(clusters, "CONNECT_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(ClusterError, match="tcp://127.0.0.1:9: no dask scheduler answers"):
        dask_workers("tcp://127.0.0.1:9").__enter__()
    assert time.monotonic() - started < 60
