"""A Ray cluster of several nodes on this machine, with the project's applications and its front, in processes."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from ..servers import Server, free_port, listening, running, unset

ROOT = Path(__file__).parents[2]
_API = "/api/serve/applications/"
CONFIG = ROOT / "deploy/ray/serve.yaml"
START = ROOT / "deploy/ray/start"

Change = Callable[[dict[str, Any]], None]
"""Changes the options of a deployment in place."""


@dataclass(frozen=True)
class Nodes:
    """The nodes: where they are, and the process that is obeyed by them."""

    address: str
    dashboard: str
    pids: tuple[int, ...]
    process: subprocess.Popen[str]

    def order(self, line: str) -> Any:
        """Have something done to the nodes (see `deploy/ray/local_nodes.py`), and return what came of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def running_nodes(sizes: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[Nodes]:
    """Start a head and nodes of these sizes, whose processes have these variables."""
    command = [sys.executable, str(ROOT / "deploy/ray/local_nodes.py"), *sizes]
    environment = _environment() | dict(variables)
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise RuntimeError(f"the nodes did not start: {log.read_text()}")
        where = json.loads(said)
        try:
            yield Nodes(where["address"], where["dashboard"], tuple(where["pids"]), process)
        finally:
            process.stdin.close()
            process.wait(60)


def deploy(nodes: Nodes, change: Change = lambda _: None) -> None:
    """Deploy deploy/ray/serve.yaml, with changes to each deployment's options, and wait until it is there."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for application in config["applications"]:
        (deployment,) = application["deployments"]
        change(deployment)
    httpx.put(f"{nodes.dashboard}{_API}", json=config, timeout=120).raise_for_status()  # as `serve deploy` does
    wait_for(lambda: states(nodes) == {"RUNNING"}, 400)


def details(nodes: Nodes) -> Any:
    """Return what Serve says of its applications."""
    return httpx.get(f"{nodes.dashboard}{_API}", timeout=60).raise_for_status().json()["applications"]


def states(nodes: Nodes) -> set[str]:
    """Return the states of all applications."""
    return {application["status"] for application in details(nodes).values()}


def replicas(nodes: Nodes, application: str) -> int:
    """Return how many replicas of an application run."""
    (deployment,) = details(nodes)[application]["deployments"].values()
    return sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])


def wait_for_replicas(nodes: Nodes, number: int) -> None:
    """Wait until each application has so many replicas. Raises TimeoutError."""
    wait_for(lambda: all(replicas(nodes, name) == number for name in details(nodes)), 400)


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Wait until something is so. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"what was waited for was not so within {seconds:g} s: `ray status` and the nodes' log may say why"
            )
        time.sleep(0.5)


@contextmanager
def front(nodes: Nodes, settings: Mapping[str, str]) -> Iterator[Server]:
    """Run the front of a cluster on a port of its own."""
    port = free_port()
    environment = _environment() | listening(port) | {"RAY_ADDRESS": nodes.address}
    with running("front", ["immich_ml_compat", "serve", "--ray"], port, environment | dict(settings)) as server:
        yield server


def _environment() -> dict[str, str]:
    exported = re.findall(r"^export (\w+)=(\S+)", START.read_text(encoding="utf-8"), re.MULTILINE)
    return unset() | dict(exported) | {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
