"""How long 1 million photos take on 1 to 64 nodes, and what the limit is: `python -m benchmarks.scale.simulation`.

Requests go client → network → front → network → node → client, and a client's next request is sent when its last one
is answered, as Immich's queues do. The network and the front are each one server with a fixed time per request. A node
shares its cores evenly between the requests that it has; it works at its full rate with two or more of them, and at
the rate measured for one in flight with one. The replicas of a kind are chosen between as Ray Serve does: the one with
fewer requests of two taken at random, sixteen at most each.

Times are this machine's (benchmarks/RESULTS.md, docs/scale.md); everything else is an option. What is simulated are so
many photos as `--photos` says: everything but the start grows in proportion, so the time for a million follows.
"""

import argparse
import heapq
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MILLION = 1_000_000

MOST_ONGOING = 16
"""As deploy/ray/serve.yaml has it."""


class Rate(NamedTuple):
    """Photos a second of one node with one in flight, and with eight."""

    alone: float
    full: float


MEASURED = {"ocr": Rate(1.34, 1.50), "faces": Rate(16.20, 24.62), "clip": Rate(8.62, 13.01)}
"""`make speed`, commit 582279d: 2 cores of an AMD EPYC. The stub of docs/scale.md slept these times."""


@dataclass(frozen=True)
class Plant:
    """What a run is of."""

    nodes: int
    in_flight: Mapping[str, int]
    """Requests of each task that the client keeps in flight."""

    front_s: float
    """Seconds that the front takes for a request."""

    photo_bytes: float
    network_bytes_per_s: float
    speed: float = 1.0
    """Of a node, in nodes as measured."""


@dataclass
class Outcome:
    """What came of a run: seconds for so many photos, and the share of them that each part was busy."""

    seconds: float
    photos: int
    busy: dict[str, float]

    @property
    def rate(self) -> float:
        """Photos a second."""
        return self.photos / self.seconds

    @property
    def limit(self) -> str:
        """What was busy nearly all of the time; where nothing was, too little is in flight."""
        part, share = max(self.busy.items(), key=lambda item: item[1])
        return part if share > 0.9 else "in flight"


@dataclass(eq=False)
class Node:
    """A node's requests, which share its cores; its own clock says how much each of them has had."""

    speed: float
    clock: float = 0.0
    at: float = 0.0
    version: int = 0
    ends: list[tuple[float, int, str]] = field(default_factory=list)
    """When the requests end, by the node's clock."""

    ongoing: Counter[str] = field(default_factory=Counter)
    worked: float = 0.0
    """Seconds of its full rate that were used."""

    def pace(self) -> float:
        """Return what one request has in a second, in seconds of the whole node."""
        if len(self.ends) == 1:
            rate = MEASURED[self.ends[0][2]]
            return self.speed * rate.alone / rate.full
        return self.speed / len(self.ends) if self.ends else 0.0

    def advance(self, now: float) -> None:
        """Let time pass."""
        passed = (now - self.at) * self.pace()
        self.clock += passed
        self.worked += passed * len(self.ends) / self.speed
        self.at = now

    def next_end(self) -> float:
        """Return when the next of its requests ends, if none comes before."""
        return self.at + (self.ends[0][0] - self.clock) / self.pace()


class Run:
    """One run of the simulation."""

    def __init__(self, plant: Plant, photos: int, tasks: Sequence[str], seed: int = 0) -> None:
        self._plant = plant
        self._left = dict.fromkeys(tasks, photos)
        self._photos = photos
        self._nodes = [Node(plant.speed) for _ in range(plant.nodes)]
        self._waiting: dict[str, deque[int]] = {task: deque() for task in tasks}
        self._events: list[tuple[float, int, str, int, int]] = []
        self._count = 0
        self._chance = random.Random(seed)
        self._free = {"network": 0.0, "front": 0.0, "network out": 0.0}
        self._busy: dict[str, float] = dict.fromkeys(self._free, 0.0)

    def run(self) -> Outcome:
        """Simulate until all is answered."""
        for task, left in self._left.items():
            for _ in range(min(left, self._plant.in_flight[task])):
                self._send(0.0, task)
        end = 0.0
        while self._events:
            now, _, task, number, version = heapq.heappop(self._events)
            if number < 0:
                self._arrive(now, task)
            elif version == self._nodes[number].version:
                self._finish(now, number)
                end = now
        parts = {"network": self._busy["network"], "front": self._busy["front"]}
        parts["nodes"] = sum(node.worked for node in self._nodes) / len(self._nodes)
        return Outcome(end, self._photos, {part: seconds / end for part, seconds in parts.items()})

    def _send(self, now: float, task: str) -> None:
        """Have the client send the next photo of a task: through the network, the front, and the network again."""
        if self._left[task] == 0:
            return
        self._left[task] -= 1
        transfer = self._plant.photo_bytes / self._plant.network_bytes_per_s
        for part, seconds in (("network", transfer), ("front", self._plant.front_s), ("network out", transfer)):
            now = self._free[part] = max(now, self._free[part]) + seconds
            self._busy[part] += seconds
        self._push(now, task, -1, 0)

    def _push(self, at: float, task: str, number: int, version: int) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, task, number, version))

    def _arrive(self, now: float, task: str) -> None:
        candidates = self._chance.sample(range(len(self._nodes)), min(2, len(self._nodes)))
        number = min(candidates, key=lambda each: self._nodes[each].ongoing[task])
        if self._nodes[number].ongoing[task] >= MOST_ONGOING:
            with_room = [each for each, node in enumerate(self._nodes) if node.ongoing[task] < MOST_ONGOING]
            if not with_room:
                self._waiting[task].append(1)
                return
            number = self._chance.choice(with_room)
        self._begin(now, number, task)

    def _begin(self, now: float, number: int, task: str) -> None:
        node = self._nodes[number]
        node.advance(now)
        node.ongoing[task] += 1
        self._count += 1
        heapq.heappush(node.ends, (node.clock + 1 / MEASURED[task].full, self._count, task))
        self._schedule(number)

    def _finish(self, now: float, number: int) -> None:
        node = self._nodes[number]
        node.advance(now)
        _, _, task = heapq.heappop(node.ends)
        node.ongoing[task] -= 1
        if self._waiting[task]:
            self._waiting[task].popleft()
            self._begin(now, number, task)
        else:
            self._schedule(number)
        self._send(now, task)

    def _schedule(self, number: int) -> None:
        node = self._nodes[number]
        node.version += 1
        if node.ends:
            self._push(node.next_end(), node.ends[0][2], number, node.version)


def shares(total: int, tasks: Sequence[str]) -> dict[str, int]:
    """Split requests in flight between tasks by the work that each is, at least one each."""
    work = {task: 1 / MEASURED[task].full for task in tasks}
    return {task: max(1, round(total * work[task] / sum(work.values()))) for task in tasks}


def duration(seconds: float) -> str:
    """Write a time for people."""
    return f"{seconds / 86400:.1f} days" if seconds > 2 * 86400 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Print the tables of docs/scale.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=4000)
    parser.add_argument("--front-ms", type=float, required=True, help="the front's time for a request")
    parser.add_argument("--photo-kb", type=float, required=True, help="a photo's size")
    parser.add_argument("--gbit", type=float, default=1.0, help="the network of the front's machine")
    parser.add_argument("--per-node", type=int, default=8, help="requests in flight for each node")
    parser.add_argument("--speed", type=float, default=1.0, help="of a node, in nodes as measured")
    parser.add_argument("--tasks", nargs="+", default=list(MEASURED), choices=MEASURED)
    parser.add_argument("--immich", action="store_true", help="Immich's own defaults in flight: 2 CLIP, 2 faces, 1 OCR")
    options = parser.parse_args()
    print("| nodes | in flight | photos/s | × one node | 1 million photos | nodes | front | network | the limit |")
    print("|---|---|---|---|---|---|---|---|---|")
    first = 0.0
    for nodes in (1, 2, 4, 8, 16, 32, 64):
        in_flight = (
            {"clip": 2, "faces": 2, "ocr": 1} if options.immich else shares(options.per_node * nodes, options.tasks)
        )
        plant = Plant(
            nodes,
            in_flight,
            options.front_ms / 1000,
            1000 * options.photo_kb,
            options.gbit * 1e9 / 8,
            options.speed,
        )
        photos = max(options.photos, 100 * nodes)
        outcome = Run(plant, photos, options.tasks).run()
        first = first or outcome.rate
        busy = " | ".join(f"{100 * outcome.busy[part]:.0f} %" for part in ("nodes", "front", "network"))
        print(
            f"| {nodes} | {sum(in_flight[task] for task in options.tasks)} | {outcome.rate:.2f} "
            f"| {outcome.rate / first:.1f} | {duration(MILLION / outcome.rate)} | {busy} | {outcome.limit} |"
        )


if __name__ == "__main__":
    main()
