"""Memory and waiting times of the server's processes: the bars of its process model, measured in one run.

    python -m benchmarks.processes

Memory is PSS, the share of each page that a process holds, summed over all of the server's processes (Linux).
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PHOTO = Path(__file__).parents[1] / "docs/invoice.jpg"
MODEL = "PP-OCRv6_small"
ENTRIES = json.dumps({"ocr": {"detection": {"modelName": MODEL}, "recognition": {"modelName": MODEL}}})
TTL_S = 3


@dataclass(frozen=True)
class Row:
    """One figure beside its bar."""

    what: str
    figure: str
    bar: str


class Server:
    """A server process and its workers."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def loads(self) -> int:
        """Return how many models have been loaded so far."""
        return self.log.read_text().count("Loaded ")

    def ping(self) -> float:
        """Return the seconds that `/ping` takes."""
        start = time.perf_counter()
        with urllib.request.urlopen(f"{self.url}/ping", timeout=10) as response:
            response.read()
        return time.perf_counter() - start

    def ocr(self) -> float:
        """Return the seconds that reading the photo takes."""
        boundary = "benchmark"
        body = (
            (
                f'--{boundary}\r\nContent-Disposition: form-data; name="entries"\r\n\r\n{ENTRIES}\r\n'
                f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="blob"\r\n\r\n'
            ).encode()
            + PHOTO.read_bytes()
            + f"\r\n--{boundary}--\r\n".encode()
        )
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        start = time.perf_counter()
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/predict", body, headers), timeout=120
        ) as response:
            response.read()
        return time.perf_counter() - start

    def processes(self) -> list[int]:
        """Return the process ids of the front and its workers."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def pss(self) -> float:
        """Return megabytes of PSS, of all processes."""
        total = 0
        for pid in self.processes():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024


@contextmanager
def serve(ttl_s: int) -> Iterator[tuple[Server, float]]:
    """Run a server; give it and the seconds to its first ping."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "IMMICH_HOST": "127.0.0.1",
        "IMMICH_PORT": str(port),
        "MACHINE_LEARNING_MODEL_TTL": str(ttl_s),
        "MACHINE_LEARNING_MODEL_TTL_POLL_S": "0.5",
    }
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "immich_ml_compat"], env=environment, stderr=output)
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        while True:
            try:
                server.ping()
                break
            except urllib.error.URLError:
                time.sleep(0.002)
        yield server, time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.unlink()


def pings_under_load() -> tuple[list[float], list[float]]:
    """Ping while workers start and load models for 8 OCR requests, and while 8 OCR requests run; in milliseconds."""
    loading: list[float] = []
    running: list[float] = []
    for _ in range(5):
        with serve(600) as (server, _), ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(server.ocr) for _ in range(24)]
            while not all(job.done() for job in jobs):
                times = loading if server.loads() < 2 else running
                times.append(server.ping() * 1000)
                time.sleep(0.005)
    return sorted(loading), sorted(running)


def p99(times: list[float]) -> str:
    """Return the 99th percentile of sorted milliseconds."""
    return f"{times[int(len(times) * 0.99)]:.0f} ms (of {len(times)})"


def measure() -> Iterator[Row]:
    """Measure every bar."""
    starts = []
    for _ in range(5):
        with serve(TTL_S) as (server, seconds):
            starts.append(seconds)
    yield Row("start to first `/ping`, median of 5", f"{statistics.median(starts):.2f} s", "≤ 1 s")
    with serve(TTL_S) as (server, seconds):
        rest = server.pss()
        yield Row("memory at rest", f"{rest:.0f} MB", "≤ 80 MB")
        yield Row("start to first OCR answer", f"{seconds + server.ocr():.2f} s", "")
        yield Row("a further OCR answer, median of 9", f"{statistics.median(server.ocr() for _ in range(9)):.2f} s", "")
        yield Row("memory with OCR loaded", f"{server.pss():.0f} MB", "")
        while len(server.processes()) > 1:
            time.sleep(0.1)
        time.sleep(0.5)
        yield Row("after the TTL, beyond at rest", f"{server.pss() - rest:.1f} MB", "≤ 15 MB")
        yield Row("first OCR answer after the TTL", f"{server.ocr():.2f} s", "")
    loading, running = pings_under_load()
    yield Row("`/ping` while a worker starts and loads, 8 requests waiting, p99", p99(loading), "≤ 100 ms")
    yield Row("`/ping` while 8 OCR requests run, p99", p99(running), "≤ 100 ms")


def main() -> None:
    """Print the table."""
    print("| what | measured | bar |\n|---|---|---|")
    for row in measure():
        print(f"| {row.what} | {row.figure} | {row.bar} |", flush=True)


if __name__ == "__main__":
    main()
