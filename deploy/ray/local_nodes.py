"""Several Ray nodes on one machine, to try things out: `python deploy/ray/local_nodes.py SIZE...`, the head first.

A node's size is its CPUs, or its CPUs and GPUs: `2` or `2,1`. Ray only counts them, so neither need be there.

Says where the cluster is on a line of JSON, then obeys lines on standard input until that ends, each with a line of
JSON when it is done: `kill N` ends node N and all of its processes at once, `add SIZE [NAME=VALUE]...` adds a node
whose processes have these variables too.
"""

import json
import os
import socket
import sys
from contextlib import closing

import psutil
from ray.cluster_utils import Cluster

_OBJECTS = 200 * 1024 * 1024


class LocalNodes:
    """A cluster whose nodes are processes of this machine."""

    def __init__(self, size: str) -> None:
        """Start the head."""
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        options = {"include_dashboard": True, "dashboard_port": int(self.dashboard.rpartition(":")[2])}
        self._cluster = Cluster(initialize_head=True, head_node_args={**_resources(size), **options})
        self._nodes = [self._cluster.head_node]

    @property
    def address(self) -> str:
        """Where drivers and nodes find the head."""
        return str(self._cluster.address)

    def add(self, size: str, variables: dict[str, str]) -> int:
        """Add a node; return its number."""
        before = dict(os.environ)
        os.environ.update(variables)  # its processes inherit them
        try:
            self._nodes.append(self._cluster.add_node(**_resources(size)))
        finally:
            os.environ.clear()
            os.environ.update(before)
        return len(self._nodes) - 1

    def pid(self, number: int) -> int:
        """Return the process that is the parent of all others of a node."""
        (raylet,) = self._nodes[number].all_processes["raylet"]
        return int(raylet.process.pid)

    def kill(self, number: int) -> int:
        """End a node as a loss of power would; return how many replicas of Serve it had."""
        raylet = psutil.Process(self.pid(number))
        processes = [raylet, *raylet.children(recursive=True)]
        replicas = sum(any(word.startswith("ray::ServeReplica") for word in each.cmdline()) for each in processes)
        for process in processes:
            process.kill()
        return replicas

    def shutdown(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def _resources(size: str) -> dict[str, float]:
    cpus, _, gpus = size.partition(",")
    return {"num_cpus": float(cpus), "num_gpus": float(gpus or 0), "object_store_memory": _OBJECTS}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    """Start the nodes and obey."""
    head, *others = sys.argv[1:]
    nodes = LocalNodes(head)
    try:
        for size in others:
            nodes.add(size, {})
        pids = [nodes.pid(number) for number in range(1 + len(others))]
        print(json.dumps({"address": nodes.address, "dashboard": nodes.dashboard, "pids": pids}), flush=True)
        for line in sys.stdin:
            match line.split():
                case ["kill", number]:
                    print(json.dumps({"killed": nodes.kill(int(number))}), flush=True)
                case ["add", size, *variables]:
                    number = nodes.add(size, dict(each.split("=", 1) for each in variables))
                    print(json.dumps({"node": number, "pid": nodes.pid(number)}), flush=True)
                case other:
                    raise SystemExit(f"kill N or add SIZE [NAME=VALUE]..., not {other}")
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    main()
