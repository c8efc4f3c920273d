"""`make ray`, after its tests: how a Ray cluster of several nodes on this machine scales.

    python -m benchmarks.scale [stub] [real] [--tasks TASK...]

stub: a replica sleeps what a photo takes on one node as measured (`simulation.MEASURED`) in place of computing, so that
one machine can be four: photos a second of 1, 2 and 4 replicas, and what the front takes for a request.
real: the models themselves, on 1 and 2 nodes of one core each; the front and the client have to share those cores.
Prints the tables of docs/scale.md.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ..fuzz.provenance import provenance
from ..measuring import IMAGE_TASKS, Load, Requests, replay
from ..models import write_models
from ..photos import photos
from ..servers import Server
from .cluster import Nodes, deploy, front, running_nodes, wait_for_replicas
from .simulation import MEASURED

STUB = Path(__file__).parent / "stub"
SECONDS = {"clip": 1 / MEASURED["clip"].full, "facial-recognition": 1 / MEASURED["faces"].full} | {
    "ocr": 1 / MEASURED["ocr"].full
}
_IN_FLIGHT = 8

Measure = Callable[[Nodes, Sequence[int]], None]
"""Measures so many replicas, and prints it."""


def stub(folder: Path, measure: Measure) -> None:
    """Measure replicas that sleep."""
    paths = [str(STUB), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    variables = {
        "STUB_SECONDS": json.dumps(SECONDS),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MACHINE_LEARNING_REQUEST_THREADS": str(_IN_FLIGHT),
        "MACHINE_LEARNING_CACHE_FOLDER": str(folder / "none"),
    }
    with running_nodes(["0", *["2"] * 4], variables, folder / "nodes.log") as nodes:
        measure(nodes, (1, 2, 4))


def real(folder: Path, measure: Measure) -> None:
    """Measure the models, a core to a node."""
    cache = Path(__file__).parents[1] / ".cache/models"
    write_models(cache)
    variables = {"MACHINE_LEARNING_CACHE_FOLDER": str(cache), "MACHINE_LEARNING_MODEL_TTL": "0"}
    with running_nodes(["0", "2", "2"], variables, folder / "nodes.log") as nodes:
        for core, pid in enumerate(nodes.pids[1:]):
            pin(pid, core)
        measure(nodes, (1, 2))


def pin(pid: int, core: int) -> None:
    """Keep a process and all that it has started or will start on one core."""
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        each.cpu_affinity([core])


def measure(requests: Requests, tasks: Sequence[str], least_s: float, nodes: Nodes, numbers: Sequence[int]) -> None:
    """Measure each task with so many replicas, and print it."""
    print("| task | replicas | in flight | photos/s | × one replica | of linear | front, ms of a core a request |")
    print("|---|---|---|---|---|---|---|")
    first: dict[str, float] = {}
    for number in numbers:
        deploy(nodes, exactly(number))
        wait_for_replicas(nodes, number)
        with front(nodes, {}) as server:
            for task in tasks:
                rate, cores = rate_of(server, requests, task, _IN_FLIGHT * number, least_s)
                times = rate / first.setdefault(task, rate)
                print(
                    f"| {task} | {number} | {_IN_FLIGHT * number} | {rate:.2f} | {times:.2f} "
                    f"| {100 * times / number:.0f} % | {1000 * cores / rate:.1f} |",
                    flush=True,
                )


def exactly(number: int) -> Callable[[dict[str, Any]], None]:
    """Return the change of a deployment to so many replicas."""

    def change(deployment: dict[str, Any]) -> None:
        deployment["autoscaling_config"] |= {"min_replicas": number, "max_replicas": number}

    return change


def rate_of(server: Server, requests: Requests, task: str, in_flight: int, least_s: float) -> tuple[float, float]:
    """Return the photos a second of a task, and the cores that the front was busy on."""
    figures = replay(server, [], requests, [Load(task, in_flight)], least_s)
    return float(figures["streams"][task]["per_s"]), float(figures["cores"][server.name])


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["stub", "real"], default=["stub", "real"])
    parser.add_argument("--tasks", nargs="+", choices=IMAGE_TASKS, default=list(IMAGE_TASKS))
    parser.add_argument("--seconds", type=float, default=20, help="that each measurement takes at least")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = photos()
        print(f"{provenance()}; photos of {sum(len(data) for _, data in drawn) / len(drawn) / 1000:.0f} kB", flush=True)
        measuring = partial(measure, Requests(folder, drawn), options.tasks, options.seconds)
        for what in options.what:
            print(f"\n{what}\n", flush=True)
            {"stub": stub, "real": real}[what](folder, measuring)


if __name__ == "__main__":
    main()
