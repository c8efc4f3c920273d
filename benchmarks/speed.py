"""This project's server beside a stock-like reference, in one run: `python -m benchmarks.speed` (`make speed`).

Both serve the same photos from the same cache folder, in turn; the one that is not measured has nothing to do. Rounds
alternate which comes first, so that a machine that grows slower or faster favours neither. Prints tables of ratios and
writes speed.json, speed.md and speed.png.

    python -m benchmarks.speed --in-flight 1 4 8 16 32 64
    python -m benchmarks.speed --stages throughput --tasks clip --set MACHINE_LEARNING_ENGINE=openvino
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from . import agreement, limit, machine, report
from .measuring import IMAGE_TASKS, SEARCH, Load, Requests, replay
from .models import write_models
from .photos import photos
from .replay import Usage
from .servers import AT_REST_S, Server, ours, reference

HERE = Path(__file__).parent
SEARCH_PAUSE_S = 0.1
BUSY = (Load("ocr", 8), Load("clip", 4))
TURNS_ALONE = 6
"""Of each server in a round with one photo in flight, as a shared machine is faster now and slower then."""
LEAST_SEARCH_S = 40.0  # a 95th percentile takes some answers


@dataclass(frozen=True)
class Run:
    """What a run is about."""

    cache: Path
    images: Sequence[tuple[str, bytes]]
    requests: Requests
    settings: dict[str, str]
    tasks: Sequence[str]
    levels: Sequence[int]
    rounds: int
    seconds: float

    def servers(self, stack: ExitStack) -> tuple[Server, Server]:
        """Start both servers with everything loaded: ours, the reference."""
        pair = stack.enter_context(ours(self.cache, self.settings)), stack.enter_context(reference(self.cache))
        for server in pair:
            self.warm(server)
        return pair

    def warm(self, server: Server) -> None:
        """Have a server load all that a run may need."""
        for task in (*IMAGE_TASKS, SEARCH):
            replay(server, (), self.requests, [Load(task, 1)], 0.0)


def throughput(run: Run) -> dict[str, Any]:
    """Measure every task at every level, both servers in turn: task → level → server → figures of each round."""
    found: dict[str, Any] = {task: {str(n): {"ours": [], "reference": []} for n in run.levels} for task in run.tasks}
    with ExitStack() as stack:
        pair = run.servers(stack)
        for number in range(run.rounds):
            for task in run.tasks:
                for level in run.levels:
                    turns = TURNS_ALONE if level == 1 else 1
                    for server in (pair if number % 2 else pair[::-1]) * turns:
                        idle = [each for each in pair if each is not server]
                        figures = replay(server, idle, run.requests, [Load(task, level)], run.seconds / turns)
                        found[task][str(level)][server.name].append(figures)
                        note(f"round {number + 1}, {task}, {level} in flight, {server.name}: {_per_s(figures, task)}")
    return found


def search(run: Run) -> dict[str, Any]:
    """Time text searches alone and behind images (server → alone, busy), and the longest graph call."""
    found: dict[str, Any] = {"longest_call_ms": limit.longest_call_ms(run.cache)}
    searching, seconds = Load(SEARCH, 1, SEARCH_PAUSE_S), max(run.seconds, LEAST_SEARCH_S)
    with ExitStack() as stack:
        pair = run.servers(stack)
        for server in pair:
            idle = [each for each in pair if each is not server]
            alone = replay(server, idle, run.requests, [searching], seconds)
            busy = replay(server, idle, run.requests, [searching, *BUSY], seconds)
            found[server.name] = {"alone": alone, "busy": busy}
            note(f"searches, {server.name}: measured")
    return found


def memory(run: Run) -> dict[str, dict[str, float]]:
    """Measure what each server holds (PSS, MB) with nothing else running: all tasks loaded, 8 photos each in flight.

    Right after these, and once it has had nothing to do for a while. Each server runs by itself: the two share their
    libraries' pages, and each would be counted half of them.
    """
    held: dict[str, dict[str, float]] = {}
    for start in (partial(ours, run.cache, run.settings), partial(reference, run.cache)):
        with start() as server:
            run.warm(server)
            for task in IMAGE_TASKS:
                figures = replay(server, (), run.requests, [Load(task, 8)], run.seconds)
            time.sleep(AT_REST_S)
            held[server.name] = {"busy": figures["pss_mb"][server.name], "at rest": Usage(server.pid).pss_mb()}
            note(f"memory, {server.name}: {held[server.name]}")
    return held


def agreements(run: Run) -> list[dict[str, Any]]:
    """Compare both servers' answers."""
    with ExitStack() as stack:
        return [asdict(figure) for figure in agreement.compare(*run.servers(stack), run.images)]


def bare_limits(run: Run) -> dict[str, Any]:
    """Measure what the machine could do at most, and what this server does right before and after that."""
    found: dict[str, Any] = {}
    images, least_s = [data for _, data in run.images], min(run.seconds, 3.0)
    with ours(run.cache, run.settings) as server:
        run.warm(server)
        for task in run.tasks:
            served = partial(replay, server, (), run.requests, [Load(task, limit.IN_FLIGHT)], run.seconds)
            before, most, after = served(), limit.limits(run.cache, images, [task], least_s)[task], served()
            per_s = [figures["streams"][task]["per_s"] for figures in (before, after)]
            found[task] = asdict(most) | {"per_s": most.per_s, "served_per_s": per_s}
            note(f"limit, {task}: {most.per_s:.2f}/s, served {per_s[0]:.2f}/s before and {per_s[1]:.2f}/s after")
    return found


STAGES: dict[str, Callable[[Run], Any]] = {
    "throughput": throughput,
    "search": search,
    "memory": memory,
    "agreement": agreements,
    "limit": bare_limits,
}


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Have so many other programs compute all the time, each on one thread, as a transcoding does."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def note(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def _per_s(figures: Any, task: str) -> str:
    return f"{figures['streams'][task]['per_s']:.2f}/s"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="+", choices=IMAGE_TASKS, default=IMAGE_TASKS)
    parser.add_argument("--in-flight", nargs="+", type=int, default=[1, 4, 8], metavar="N")
    parser.add_argument("--rounds", type=int, default=4, help="even: each server comes first as often")
    parser.add_argument("--seconds", type=float, default=10.0, help="at least, for each measurement")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="models, made where they are missing")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of speed.json, speed.md and speed.png")
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="other programs that always compute")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of this project's server")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = _options()
    settings = dict(each.split("=", 1) for each in options.set)
    cache = options.cache.absolute()
    write_models(cache)
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": machine.describe(),
        "settings": settings,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "beside": options.beside,
    }
    with tempfile.TemporaryDirectory() as folder, busy_programs(options.beside):
        images = photos()
        requests = Requests(Path(folder), images)
        run = Run(
            cache, images, requests, settings, options.tasks, sorted(options.in_flight), options.rounds, options.seconds
        )
        for stage in options.stages:
            results[stage] = STAGES[stage](run)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "speed.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    tables = report.tables(results)
    (options.output / "speed.md").write_text(tables, encoding="utf-8")
    print(tables)
    if "throughput" in results:
        report.plot(results, options.output / "speed.png")


if __name__ == "__main__":
    main()
