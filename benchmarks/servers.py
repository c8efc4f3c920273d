"""The two servers of a run, each on the same cache folder and a port of its own."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REFERENCE_PACKAGES = Path(sys.prefix) / "reference"
"""Where `make speed` puts uvloop and httptools, which the stock server has: for the reference's process alone."""

AT_REST_S = 15.0
"""Seconds of rest after which this project's server has given back what it does not need: it looks every 10."""

_START_S = 60


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    pid: int


@contextmanager
def reference(cache: Path) -> Iterator[Server]:
    """Run the reference server."""
    paths = [str(REFERENCE_PACKAGES), os.environ.get("PYTHONPATH", "")]
    environment = unset() | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    port = free_port()
    with running("reference", ["benchmarks.reference", str(cache), str(port)], port, environment) as server:
        yield server


@contextmanager
def ours(cache: Path, settings: dict[str, str]) -> Iterator[Server]:
    """Run this project's server: the settings given, else defaults, and models that stay."""
    port = free_port()
    environment = unset() | listening(port)
    environment |= {
        "MACHINE_LEARNING_CACHE_FOLDER": str(cache),
        "MACHINE_LEARNING_MODEL_TTL": "0",
        "HF_HUB_OFFLINE": "1",
    }
    with running("ours", ["immich_ml_compat"], port, environment | settings) as server:
        yield server


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listening(port: int) -> dict[str, str]:
    """Return the settings of a server of this project on a port of this machine."""
    return {"IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": str(port), "IMMICH_LOG_LEVEL": "warn"}


def unset() -> dict[str, str]:
    """Return this process's environment without any settings of a server."""
    return {name: value for name, value in os.environ.items() if not re.match("(?i)MACHINE_LEARNING_|IMMICH_", name)}


@contextmanager
def running(name: str, module: list[str], port: int, environment: dict[str, str]) -> Iterator[Server]:
    """Run a server, once it listens, until the end."""
    with subprocess.Popen([sys.executable, "-m", *module], env=environment) as process:
        try:
            _wait(name, process, port)
            yield Server(name, port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the server ({name}) did not start within {_START_S} s: its own words are above")
