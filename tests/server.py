"""A server process of the test's own."""

import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

_START_SECONDS = 60

SETTING = re.compile(
    "(?i)MACHINE_LEARNING_|IMMICH_|(CLIP_MODEL|CLIP_DOWNLOAD_ROOT|DEVICE|ONNX_PROVIDERS|API_AUTH_KEY|MT_PHOTOS_API_KEY|"
    "RECOGNITION_MODEL|DETECTION_THRESH|HTTP_PORT|SERVER_RESTART_TIME|PORT)$"
)
"""The names of environment variables that the server reads as settings."""


@dataclass(frozen=True)
class Server:
    """A running server: its address, its process and the file its log goes to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def predict(
        self, entries: Any, image: bytes | None = None, text: str | None = None, timeout: float = 120
    ) -> httpx.Response:
        """POST /predict as Immich does; `entries` that are no text are written as JSON."""
        parts: list[tuple[str, Any]] = []
        if entries is not None:
            parts.append(("entries", (None, entries if isinstance(entries, str) else orjson.dumps(entries).decode())))
        if image is not None:
            parts.append(("image", ("blob", image, "application/octet-stream")))
        if text is not None:
            parts.append(("text", (None, text)))
        return httpx.post(f"{self.url}/predict", files=parts or None, timeout=timeout)


@contextmanager
def running_server(
    cache: Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    root: str = "",
    verify: ssl.SSLContext | bool = True,
) -> Iterator[Server]:
    """Start `serve` on a free port, wait until it answers below `root`, and stop it at the end.

    `verify` is what its certificate is held against, where it speaks TLS.
    """
    log = folder / "server.log"
    variables = {name: value for name, value in os.environ.items() if not SETTING.match(name)}
    variables |= {"MACHINE_LEARNING_CACHE_FOLDER": str(cache), "IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": "0"}
    # The same figures on every machine: some would choose bf16.
    variables |= {"MACHINE_LEARNING_PRECISION": "fp32"} | dict(environment or {})
    command = [sys.executable, "-m", "immich_ml_compat"]
    with log.open("wb") as output, subprocess.Popen(command, env=variables, stdout=output, stderr=output) as process:
        try:
            yield Server(_wait(process, log, root, verify), process, log)
        finally:
            process.terminate()
            process.wait(30)


def exchange(port: int, request: bytes, *pieces: bytes, pause: float = 0.1) -> bytes:
    """Send bytes to a server on this machine, then pieces with pauses; return what comes until it closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, suppress(ConnectionError):
        connection.sendall(request)
        with suppress(ConnectionError):
            for piece in pieces:
                time.sleep(pause)
                connection.sendall(piece)
        while received := connection.recv(65536):
            answer += received
    return answer


def _wait(process: subprocess.Popen[bytes], log: Path, root: str, verify: ssl.SSLContext | bool) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if address := re.search(r'Serving on (https?://[^\s"]+)', log.read_text()):
            try:
                if httpx.get(f"{address[1]}{root}/ping", verify=verify).text == "pong":
                    return address[1]
            except httpx.TransportError:
                pass  # it says where before it listens to what comes
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()}")
