"""More connections than the server may have open: it goes on, and says so in few words."""

import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from .server import exchange, running_server

FILES = 40


def test_connections_beyond_the_limit_of_files(cache: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        with running_server(cache, tmp_path) as server:
            if hard > 512:
                assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] > 512, "it asked for more"
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (FILES, hard))
            with ExitStack() as flood:
                for _ in range(3 * FILES):
                    flood.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
                time.sleep(2.5)  # it tries again once a second
            assert httpx.get(f"{server.url}/ping", timeout=30).text == "pong"
            log = server.log.read_text()
            assert 1 <= log.count("out of system resource") <= 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "nonsense", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: a\r\n\r\n"]
)
def test_nonsense_has_few_lines_in_the_log(cache: Path, tmp_path: Path, nonsense: bytes) -> None:
    with running_server(cache, tmp_path, {"MACHINE_LEARNING_ACCESS_TOKEN": "t"}, root="/t") as server:
        for _ in range(30):
            assert exchange(server.port, nonsense)
        log = server.log.read_text()
    assert 10 <= log.count("WARNING") <= 20
    assert "more of these are left out" in log
