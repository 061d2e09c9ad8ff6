"""A tool whose images fail or kill their worker, for the tests of clusters; what it must say.

It imports little, so that the workers, which get its functions, start fast.
"""

import json
import os
import sys
import time
from pathlib import Path

from lib import dask_cluster
from lib.parallel import for_each
from lib.proposals.store import ProposalStore

PLACE = ("--json", "squares.json", "--images", "images", "--proposals", "store")


def folder_or_death(number):
    if number == 3:
        os._exit(1)
    if number == 5:
        raise ValueError("five is bad")
    return os.getpid(), os.getcwd()


def wait_long(number):
    Path(f"{number} begins").touch()
    time.sleep(600)


def main(argv=None):
    from lib.command_line import Command, add_parallel_arguments, report_failures, run_tool

    def options(parser):
        parser.add_argument("work", choices=("folder_or_death", "wait_long"))
        parser.add_argument("--patience", type=float, default=dask_cluster.PATIENCE_SECONDS)
        add_parallel_arguments(parser)

    def run(args):
        dask_cluster.PATIENCE_SECONDS = args.patience
        tasks = ((f"image {n}", (n,)) for n in range(8))
        results, failures = for_each(globals()[args.work], tasks, 8)
        print(json.dumps([results, failures]))
        return report_failures(failures, 8)

    return run_tool(__doc__, Command(run, options), argv)


def check_a_tool(run, data):
    """`run(*arguments)` makes proposals in `data`; returns (exit code, stdout, stderr)."""
    (data / "images" / "a" / "2.png").write_bytes(b"no image")
    code, _, err = run(*PLACE)
    assert code == 1 and "1 of 3 images failed" in err and "a/2.png" in err, err
    store = ProposalStore(data / "store")
    assert store.has("a/1.png") and store.has("b/1.png") and not store.has("a/2.png")


def check_the_dead_are_named(code, out, folder):
    """Of `folder_or_death`, started in `folder`."""
    assert code == 1
    results, failures = json.loads(out)
    assert failures.pop("image 5") == "five is bad"
    # Images that were with the workers at the same time may count as failed too.
    assert "image 3" in failures and all("died" in reason for reason in failures.values())
    assert results.keys().isdisjoint(failures) and len(results) + len(failures) == 7
    pids, folders = zip(*results.values(), strict=True)
    assert os.getpid() not in pids and set(folders) == {str(folder)}


if __name__ == "__main__":
    # By its importable name, for functions of a script travel as they are.
    from tests import cluster_work

    sys.exit(cluster_work.main())
