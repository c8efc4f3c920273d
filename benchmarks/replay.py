"""Replays requests over raw sockets and times the answers: `python -m benchmarks.replay` with a plan on stdin.

A process of its own, which parses no more than the end of an answer's head: it takes little of the cores that the
server under test needs, and says how much. Streams run side by side; each keeps so many requests in flight, each on
a connection of its own that stays open, and takes its requests in turn, round and round. What counts lies between two
answers of the first stream that stand whole rounds apart, so that every request weighs the same; requests before
and after it keep the server as busy as it is between.
"""

import json
import selectors
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

_CHUNK = 1 << 18


class ReplayError(Exception):
    """An answer that is no answer; the message says which request and what came."""


@dataclass
class Stream:
    """Requests that are sent in turn, so many at a time, each connection pausing before its next."""

    name: str
    requests: list[bytes]
    in_flight: int
    pause_s: float = 0.0
    answers: list[tuple[float, float]] = field(default_factory=list)
    """When each answer was complete, and how long it took; in seconds."""

    def __post_init__(self) -> None:
        self._turns = cycle(self.requests)

    def next(self) -> memoryview:
        """Return the request whose turn it is."""
        return memoryview(next(self._turns))


class Connection:
    """One connection, on which one request at a time is in flight."""

    def __init__(self, port: int, stream: Stream) -> None:
        self.stream = stream
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due: float | None = 0.0
        """When to send the next request; None while one is in flight."""
        self._unsent = memoryview(b"")
        self._answer = bytearray()
        self._started = 0.0

    def begin(self) -> None:
        """Start sending the next request."""
        self._unsent, self._answer, self.due = self.stream.next(), bytearray(), None
        self._started = time.perf_counter()

    def send(self) -> bool:
        """Send what the socket takes; tell whether that was all."""
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        return not self._unsent

    def receive(self) -> bool:
        """Take what has come; tell whether the answer is whole. Raises ReplayError for any but a 200."""
        data = self.socket.recv(_CHUNK)
        self._answer += data
        head = self._answer.find(b"\r\n\r\n")
        if head >= 0 and not self._answer.startswith(b"HTTP/1.1 200 "):
            raise ReplayError(f"{self.stream.name}: {bytes(self._answer[:500])!r}")
        if not data:
            raise ReplayError(f"{self.stream.name}: the connection was closed after {bytes(self._answer[:200])!r}")
        if head < 0 or len(self._answer) < head + 4 + _content_length(self._answer[:head]):
            return False
        now = time.perf_counter()
        self.stream.answers.append((now, now - self._started))
        self.due = now + self.stream.pause_s
        return True


def _content_length(head: bytearray) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise ReplayError(f"an answer without Content-Length: {bytes(head)!r}")


@dataclass
class Window:
    """When counting begins and ends: from answer `warm_up` of the first stream on, for whole rounds of its requests.

    They are as many as are in flight at least: a server that takes a step of all requests before the next step answers
    them in bursts.
    """

    stream: Stream
    warm_up: int
    least_s: float
    begin: int | None = None
    end: int | None = None

    def update(self) -> str | None:
        """Return "begin" or "end" where one of them has just come."""
        done = len(self.stream.answers)
        if self.begin is None and done >= self.warm_up:
            self.begin = done - 1  # counting starts when this answer was complete
            return "begin"
        if self.begin is not None and self.end is None:
            counted = done - 1 - self.begin
            elapsed = self.stream.answers[-1][0] - self.stream.answers[self.begin][0]
            whole_rounds = counted >= self.stream.in_flight and counted % len(self.stream.requests) == 0
            if whole_rounds and elapsed >= self.least_s:
                self.end = done - 1
                return "end"
        return None


class Usage:
    """CPU time and memory of a process and all its descendants."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def cpu_s(self) -> float:
        """Return the seconds of CPU that the living ones have used so far."""
        times = [process.cpu_times() for process in self._processes()]
        return float(sum(each.user + each.system for each in times))

    def pss_mb(self) -> float:
        """Return the memory that they hold, shared pages by share, in MB."""
        return float(sum(process.memory_full_info().pss for process in self._processes()) / 1e6)

    def own_mb(self) -> float:
        """Return the memory that is theirs alone, in MB: without mapped files, whose pages the system takes back."""
        held = (process.memory_info() for process in self._processes())
        return float(sum(each.rss - each.shared for each in held) / 1e6)

    def _processes(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


class Replay:
    """One measurement against one server."""

    def __init__(self, port: int, streams: list[Stream], window: Window, watched: dict[str, Usage]) -> None:
        self._window = window
        self._watched = watched
        self._connections = [Connection(port, stream) for stream in streams for _ in range(stream.in_flight)]
        self._selector = selectors.DefaultSelector()
        self._cpu: dict[str, list[tuple[float, float]]] = {name: [] for name in (*watched, "replayer", "machine")}

    def run(self) -> dict[str, float]:
        """Replay until the window has ended and the last answer has come.

        Returns how many cores were busy for each process watched, for this one, and for everybody ("machine").
        """
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        try:
            while self._window.end is None or self._close_idle():
                self._begin_due()
                for key, events in self._selector.select(self._patience()):
                    self._serve(key.data, events)
        finally:
            self._selector.close()
            for connection in self._connections:
                connection.socket.close()
        return {name: (end[1] - start[1]) / (end[0] - start[0]) for name, (start, end) in self._cpu.items()}

    def _close_idle(self) -> bool:
        """Close connections that wait for nothing, before the server tires of them; tell whether any is left."""
        for connection in [each for each in self._connections if each.due is not None]:
            self._selector.unregister(connection.socket)
            connection.socket.close()
            self._connections.remove(connection)
        return bool(self._connections)

    def _begin_due(self) -> None:
        now = time.perf_counter()
        for connection in self._connections:
            if self._window.end is None and connection.due is not None and connection.due <= now:
                connection.begin()
                self._continue(connection)

    def _patience(self) -> float | None:
        due = [connection.due for connection in self._connections if connection.due is not None]
        return max(0.0, min(due) - time.perf_counter()) if due and self._window.end is None else None

    def _serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._continue(connection)
        if events & selectors.EVENT_READ and connection.receive():
            happened = self._window.update()
            if happened:
                self._note_cpu()

    def _continue(self, connection: Connection) -> None:
        waiting = 0 if connection.send() else selectors.EVENT_WRITE
        self._selector.modify(connection.socket, selectors.EVENT_READ | waiting, connection)

    def _note_cpu(self) -> None:
        for name, usage in self._watched.items():
            self._cpu[name].append((time.perf_counter(), usage.cpu_s()))
        self._cpu["replayer"].append((time.perf_counter(), time.process_time()))
        self._cpu["machine"].append((time.perf_counter(), busy_s()))


def busy_s() -> float:
    """Return the seconds that all cores together have been busy so far, for whomever."""
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0))  # beyond them come parts of others


def figures(stream: Stream, begin_s: float, end_s: float) -> dict[str, float]:
    """Return a stream's answers a second in the window and their latencies in milliseconds, where there are any."""
    times = sorted(took * 1000 for at, took in stream.answers if begin_s < at <= end_s)
    if not times:  # slow requests beside the stream that says how long to count
        return {"count": 0, "per_s": 0.0}
    last = len(times) - 1
    return {
        "count": len(times),
        "per_s": len(times) / (end_s - begin_s),
        "p50_ms": times[round(last * 0.5)],
        "p95_ms": times[round(last * 0.95)],
        "max_ms": times[-1],
    }


def replay(plan: dict[str, Any]) -> dict[str, Any]:
    """Carry out a plan (made by `benchmarks/measuring.py`) and return all figures."""
    streams = [
        Stream(each["name"], [Path(path).read_bytes() for path in each["requests"]], each["in_flight"], each["pause_s"])
        for each in plan["streams"]
    ]
    first = streams[0]
    window = Window(first, max(len(first.requests), 2 * first.in_flight), plan["least_s"])
    watched = {name: Usage(pid) for name, pid in plan["watched"].items()}
    cores = Replay(plan["port"], streams, window, watched).run()
    assert window.begin is not None
    assert window.end is not None
    begin_s, end_s = first.answers[window.begin][0], first.answers[window.end][0]
    return {
        "seconds": end_s - begin_s,
        "streams": {stream.name: figures(stream, begin_s, end_s) for stream in streams},
        "cores": cores,
        "pss_mb": {name: usage.pss_mb() for name, usage in watched.items()},
    }


if __name__ == "__main__":
    try:
        print(json.dumps(replay(json.load(sys.stdin))))
    except ReplayError as error:
        raise SystemExit(str(error)) from None
