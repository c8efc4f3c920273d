"""200 requests in flight, of all kinds, for half an hour: is every valid one answered, in bounded memory?

    python -m benchmarks.soak_load [CACHE] [--minutes 30] [--in-flight 200] [--queue-mb 32]

Clients read photos, find faces, embed photos and texts, send what is no image and what is too large, and hang up on the
way. Photos are a small page with a megabyte behind its end, so that the queue's bound holds uploads back. Fails where a
valid request got anything but a 200 or a bad one anything but its 4xx, where `/ping` took 200 ms or more at the 99th
percentile, and where memory (PSS, all processes) peaked in the second half more than 10 % above the first.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

from .forms import QUERIES, request
from .fuzz.provenance import provenance
from .models import write_models
from .replay import Usage
from .servers import ours

PING_S = 0.2
"""The most that `/ping` may take at the 99th percentile, in seconds."""

_GROWTH = 1.1
_PATIENCE_S = 300  # Immich's
_LOOK_S = 2.0
_PING_EVERY_S = 0.05
_HOST = "127.0.0.1"

# What a client does and what it must get; of every 20 requests so many.
_SHARES = {"ocr": 5, "faces": 3, "clip": 3, "search": 4, "bad image": 2, "oversized": 1, "hang-up": 2}
_EXPECTED = {"bad image": 400, "oversized": 413, "hang-up": None}


@dataclass
class Findings:
    """What came of a load."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How many requests of each kind were answered as they must be."""

    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    pings_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def ping_s(self) -> float:
        """Return the 99th percentile."""
        return statistics.quantiles(self.pings_s, n=100)[98]

    def faults(self) -> list[str]:
        """Say what is not as it must be."""
        faults = list(self.wrong)
        if self.ping_s() >= PING_S:
            faults.append(f"/ping took {1000 * self.ping_s():.0f} ms at the 99th percentile")
        half = len(self.memory_mb) // 2
        if max(self.memory_mb[half:]) > _GROWTH * max(self.memory_mb[:half]):
            faults.append("memory grew")
        return faults


def put_under_load(port: int, pid: int, seconds: float, in_flight: int, seed: int = 0) -> Findings:
    """Keep so many requests in flight for so long, and wait for the last ones."""
    findings, over = Findings(), threading.Event()
    watchers = [
        threading.Thread(target=_ping, args=(port, findings, over)),
        threading.Thread(target=_look, args=(pid, findings, over)),
    ]
    for watcher in watchers:
        watcher.start()
    try:
        asyncio.run(_all_clients(port, findings, seconds, in_flight, seed))
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
    return findings


async def _all_clients(port: int, findings: Findings, seconds: float, in_flight: int, seed: int) -> None:
    until = time.monotonic() + seconds
    page = Path(__file__).parents[1].joinpath("docs/invoice.jpg").read_bytes()
    await asyncio.gather(
        *(_client(port, findings, until, page, random.Random(f"{seed} {number}")) for number in range(in_flight))
    )


async def _client(port: int, findings: Findings, until: float, page: bytes, chance: random.Random) -> None:
    while time.monotonic() < until:
        (kind,) = chance.choices(list(_SHARES), list(_SHARES.values()))
        begin = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                status, body = await _ask(port, kind, _message(kind, page, chance), chance)
        except (OSError, TimeoutError, ValueError, EOFError) as error:
            findings.wrong.append(f"{kind}: {type(error).__name__} {error}")
            continue
        expected = _EXPECTED.get(kind, 200)
        if expected is None or status == expected:
            findings.outcomes[kind] += 1
            findings.slowest_s = max(findings.slowest_s, time.monotonic() - begin)
        else:
            findings.wrong.append(f"{kind}: {status} {body[:200]!r}")


def _message(kind: str, page: bytes, chance: random.Random) -> bytes:
    match kind:
        case "search":
            return request("search", chance.choice(QUERIES))
        case "bad image":
            return request("ocr", chance.randbytes(chance.randrange(1, 100_000)))
        case "oversized":
            return b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000000\r\n" + _TYPE
        case "hang-up":
            kind = "ocr"
    return request(kind, page + bytes(chance.randrange(2_000_000)))


_TYPE = b"Content-Type: multipart/form-data; boundary=B\r\n\r\n"


async def _ask(port: int, kind: str, message: bytes, chance: random.Random) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(_HOST, port)
    try:
        writer.write(message)
        if kind == "hang-up":
            await asyncio.sleep(chance.random())
            return 0, b""
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head.split()[1]), await reader.readexactly(int(length.partition(b":")[2]))
    finally:
        writer.transport.abort()


def _ping(port: int, findings: Findings, over: threading.Event) -> None:
    while not over.wait(_PING_EVERY_S):
        begin = time.perf_counter()
        try:
            connection = HTTPConnection(_HOST, port, timeout=30)
            connection.request("GET", "/ping")
            answer = connection.getresponse().read()
            connection.close()
        except OSError as error:
            answer = str(error).encode()
        findings.pings_s.append(time.perf_counter() - begin)
        if answer != b"pong":
            findings.wrong.append(f"ping: {answer[:200]!r}")


def _look(pid: int, findings: Findings, over: threading.Event) -> None:
    while not over.wait(_LOOK_S):
        findings.memory_mb.append(Usage(pid).pss_mb())


def main() -> int:
    """Run the load and print a line for `docs/reliability.md`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--queue-mb", type=int, default=32)
    options = parser.parse_args()
    with ExitStack() as stack:
        cache = options.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_models(cache)
        settings = {"MACHINE_LEARNING_QUEUE_MB": str(options.queue_mb), "IMMICH_LOG_LEVEL": "error"}
        server = stack.enter_context(ours(cache, settings))
        findings = put_under_load(server.port, server.pid, 60 * options.minutes, options.in_flight)
    half = len(findings.memory_mb) // 2
    print(
        f"| {options.in_flight} in flight for {options.minutes:g} minutes, QUEUE_MB {options.queue_mb} "
        f"| {', '.join(f'{kind} {count}' for kind, count in sorted(findings.outcomes.items()))}: "
        f"{len(findings.wrong)} answered wrongly; slowest {findings.slowest_s:.0f} s; "
        f"peak memory {max(findings.memory_mb[:half]):.0f} MB, then {max(findings.memory_mb[half:]):.0f} MB; "
        f"/ping p99 {1000 * findings.ping_s():.0f} ms of {len(findings.pings_s)} | {provenance()} |"
    )
    faults = findings.faults()
    print(*faults[:20], sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
