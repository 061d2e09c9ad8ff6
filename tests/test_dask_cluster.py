"""The tools on a cluster of two workers: its dead are reported, and nothing waits forever."""

import argparse
import logging
import os
import sys
import time

import pytest

pytest.importorskip("distributed", reason="needs the extra `dask`")

import dask
from distributed import LocalCluster

from lib import dask_cluster
from lib.command_line import errors_in_a_line
from lib.dask_cluster import ClusterError, dask_workers
from lib.parallel import add_parallel_arguments, for_each, workers_from_args
from lib.proposals.store import ProposalStore
from tests.cluster_work import folder_or_death, wait_long
from tests.proposals.test_tools import arguments, data  # noqa: F401 (a fixture)
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


def tasks(count):
    return ((f"image {n}", (n,)) for n in range(count))


def test_tools_work_on_the_cluster(cluster, data, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(data)  # the workers were started elsewhere
    on_cluster = ("--backend", "dask", "--scheduler", cluster.scheduler_address)
    (data / "images" / "a" / "2.png").write_bytes(b"no image")
    place = ("--json", "squares.json", "--images", "images", "--proposals", "store")
    assert make_proposals.main([*place, *on_cluster]) == 1
    said = capsys.readouterr()
    assert "1 of 3 images failed" in said.err and "a/2.png" in said.err
    store = ProposalStore(data / "store")
    assert store.has("a/1.png") and store.has("b/1.png") and not store.has("a/2.png")
    assert check_proposals.main([*place, *on_cluster]) == 1
    assert "2 of 3 images have readable proposals" in capsys.readouterr().out


def test_an_image_that_kills_its_workers_is_named(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with dask_workers(cluster.scheduler_address):
        results, failures = for_each(folder_or_death, tasks(8), 8)
    assert failures.pop("image 5") == "five is bad"
    # Images that were with the workers at the same time may count as failed too.
    assert "image 3" in failures and all("died" in reason for reason in failures.values())
    assert results.keys().isdisjoint(failures) and len(results) + len(failures) == 7
    pids, folders = zip(*results.values(), strict=True)
    assert os.getpid() not in pids and set(folders) == {str(tmp_path)}


def test_a_cluster_without_workers_is_an_error(cluster, monkeypatch, capsys):
    monkeypatch.setattr(dask_cluster, "PATIENCE_SECONDS", 1.0)

    @errors_in_a_line
    def main(argv=None):
        with dask_workers(cluster.scheduler_address):
            cluster.scale(0)
            for_each(wait_long, tasks(4), 4)
        return 0

    assert main() == 2
    assert "had no worker for 1 s" in capsys.readouterr().err


def parsed(*argv):
    parser = argparse.ArgumentParser()
    add_parallel_arguments(parser)
    return parser.parse_args(argv)


def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match="needs --scheduler"):
        workers_from_args(parsed("--backend", "dask"))
    with pytest.raises(ValueError, match="goes with --backend dask"):
        workers_from_args(parsed("--scheduler", "tcp://127.0.0.1:1"))


def test_no_scheduler_answers(monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(ClusterError, match="tcp://127.0.0.1:9: no dask scheduler answers"):
        workers_from_args(
            parsed("--backend", "dask", "--scheduler", "tcp://127.0.0.1:9")
        ).__enter__()
    assert time.monotonic() - started < 60


def test_without_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "lib.dask_cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[dask\]'"):
        workers_from_args(parsed("--backend", "dask", "--scheduler", "tcp://127.0.0.1:9"))
