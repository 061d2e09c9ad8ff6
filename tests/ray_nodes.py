"""A ray cluster on this machine, for tests: a head, and two nodes with a worker each.

    python -m tests.ray_nodes

It prints the cluster's address, then does what it reads (`freeze head`, `thaw head`, `end
workers`), with a line when that is done. Everything ends with its standard input, so that nothing
outlives the tests.
"""

import os
import signal
import sys
import tempfile

SMALL = {"object_store_memory": 80 * 2**20}


def main():
    # In /tmp, for names of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="cim-ray-", dir="/tmp") as folder:
        os.environ |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        from ray.cluster_utils import Cluster

        settings = {"num_cpus": 0, "include_dashboard": False, **SMALL}
        cluster = Cluster(initialize_head=True, head_node_args=settings)
        head = cluster.head_node.all_processes["gcs_server"][0].process
        try:
            nodes = [cluster.add_node(num_cpus=1, **SMALL) for _ in range(2)]
            print(cluster.address, flush=True)
            for line in sys.stdin:
                if line == "freeze head\n":
                    head.send_signal(signal.SIGSTOP)
                elif line == "thaw head\n":
                    head.send_signal(signal.SIGCONT)
                else:
                    for node in nodes:  # gracefully: those who are killed leave processes
                        cluster.remove_node(node)
                print("done", flush=True)
        finally:
            head.send_signal(signal.SIGCONT)
            cluster.shutdown()


if __name__ == "__main__":
    main()
