"""One measurement: requests on disk, a plan for the replayer's process, its figures back."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .forms import QUERIES, request
from .servers import Server

IMAGE_TASKS = ("ocr", "faces", "clip")
SEARCH = "search"


class Requests:
    """The requests of every task as files, for the replayer."""

    def __init__(self, folder: Path, photos: Sequence[tuple[str, bytes]]) -> None:
        """Write them into a folder."""
        self._files: dict[str, list[str]] = {}
        for task in (*IMAGE_TASKS, SEARCH):
            payloads: Sequence[bytes | str] = QUERIES if task == SEARCH else [data for _, data in photos]
            self._files[task] = []
            for number, payload in enumerate(payloads):
                path = folder / f"{task}-{number}.http"
                path.write_bytes(request(task, payload))
                self._files[task].append(str(path))

    def of(self, task: str) -> list[str]:
        """Return the paths of a task's requests."""
        return self._files[task]


@dataclass(frozen=True)
class Load:
    """So many requests of a task in flight, each connection pausing before its next."""

    task: str
    in_flight: int
    pause_s: float = 0.0


def replay(server: Server, idle: Sequence[Server], requests: Requests, loads: Sequence[Load], least_s: float) -> Any:
    """Replay loads side by side; the first one's requests say when it has been long enough.

    Returns the figures of `benchmarks.replay`: seconds, streams (by task), cores used (by server and replayer) and
    memory. Raises RuntimeError where an answer was no 200.
    """
    plan = {
        "port": server.port,
        "least_s": least_s,
        "watched": {each.name: each.pid for each in (server, *idle)},
        "streams": [
            {
                "name": load.task,
                "requests": requests.of(load.task),
                "in_flight": load.in_flight,
                "pause_s": load.pause_s,
            }
            for load in loads
        ],
    }
    command = [sys.executable, "-m", "benchmarks.replay"]
    run = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{server.name}, {', '.join(load.task for load in loads)}: {run.stderr.strip()}")
    return json.loads(run.stdout)
