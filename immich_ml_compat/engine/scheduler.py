"""The scheduler of a worker: which graph runs when, on how many threads, and together with what.

tasks, in any number of threads → queue → as many runs as the cores hold → results

On a CPU several runs of one thread each compute more than one run of several threads, so that is how graphs run under
load; a photo that is alone gets all cores for each of its runs. On a GPU runs of the same graph and shape that
queued while the last one ran go together as one batch.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..timing import INFERENCE, POSTPROCESS, PREPROCESS, QUEUE, during, stopwatch
from . import Array, Engine, EngineError, Session

log = logging.getLogger(__name__)

EngineOf = Callable[[int], Engine]
"""Returns the engine that runs a graph on so many threads."""

Inputs = Mapping[str, Array]


@dataclass(eq=False)
class _Run:
    """One run that was asked for."""

    session: "ScheduledSession"
    inputs: Inputs
    result: "Future[list[Array]]"
    started: float | None = None
    """When it began, by `time.perf_counter`."""

    context: Context = field(default_factory=copy_context)
    """That of the request it is for: what is logged within it bears the request's id."""

    def fits(self, other: "_Run") -> bool:
        """Tell whether both can go in one batch: the same graph, and the same shapes but for the batch axis."""
        return self.session is other.session and all(
            values.shape[1:] == other.inputs[name].shape[1:] for name, values in self.inputs.items()
        )


class Scheduler:
    """Shares the cores, or a GPU, between the runs of all graphs of a process. Safe to use from several threads."""

    def __init__(self, cores: int, widths: Sequence[int], max_batch: int = 1) -> None:
        """`widths` are the numbers of threads that a run may have; `max_batch` the most items of one run."""
        self.widths = sorted(widths)
        self.max_batch = max_batch
        self.cores = self._free = max(cores, self.widths[0])
        self._photos = 0
        self._batches: Counter[int] = Counter()
        self._waiting: deque[_Run] = deque()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(self.cores, thread_name_prefix="graph")
        self._search_thread = ThreadPoolExecutor(1, thread_name_prefix="search")

    @property
    def window(self) -> int:
        """So many runs of one request at a time keep everything busy."""
        return 2 * max(self.cores // self.widths[0], self.max_batch)

    @property
    def room(self) -> int:
        """So many photos side by side keep everything busy: while some are decoded, others are in their graphs."""
        runs = self.cores // self.widths[0]
        return runs + 1 if self.max_batch == 1 else 2 * runs * self.max_batch

    @contextmanager
    def photo(self) -> Iterator[None]:
        """Tell that a photo is being worked on: those that are decoded meanwhile need cores as well."""
        with self._lock:
            self._photos += 1
        try:
            yield
        finally:
            with self._lock:
                self._photos -= 1

    def take_batches(self) -> tuple[tuple[int, int], ...]:
        """Return how many items each run of a graph had, and how many runs had so many, since this was asked last."""
        with self._lock:
            taken, self._batches = self._batches, Counter()
        return tuple(taken.items())

    def note_run(self, items: int) -> None:
        """Count a run of so many items."""
        with self._lock:
            self._batches[items] += 1

    def submit(self, run: _Run) -> None:
        """Have a run done in its turn."""
        with self._lock:
            self._waiting.append(run)
            self._pump()

    def search(self, run: _Run) -> None:
        """Have a run done at once, beside all others, on a thread of its own: a person waits for it."""
        with self._lock:
            busy = self._photos or self._free < self.cores
        self._search_thread.submit(_execute, [run], self.widths[0] if busy else self.widths[-1])

    def _pump(self) -> None:
        while self._waiting and self._free >= self.widths[0]:
            batch = self._take()
            threads = self._share()
            self._free -= threads
            self._threads.submit(self._do, batch, threads)

    def _take(self) -> list[_Run]:
        """The run that has waited longest, with those that can go with it."""
        first = self._waiting.popleft()
        room = min(self.max_batch, first.session.max_batch) - 1
        if room <= 0:
            return [first]
        others = [run for run in self._waiting if run.fits(first)][:room]
        for run in others:
            self._waiting.remove(run)
        return [first, *others]

    def _share(self) -> int:
        """The threads of the next run: an equal share of the cores, as far as they are free."""
        running = self.cores - self._free  # at least one thread each
        share = self.cores // max(self._photos, running + 1 + len(self._waiting))
        return max(width for width in self.widths if width <= max(self.widths[0], min(share, self._free)))

    def _do(self, batch: list[_Run], threads: int) -> None:
        try:
            _execute(batch, threads)
        finally:
            with self._lock:
                self._free += threads
                self._pump()


def _execute(batch: list[_Run], threads: int) -> None:
    """Run a batch; where that fails, each of it alone, so that a bad item fails by itself."""
    batch = [run for run in batch if run.result.set_running_or_notify_cancel()]
    if not batch:
        return
    try:
        results = _run_now(batch, threads)
    except BaseException as error:  # noqa: BLE001  (whatever it is, somebody waits for it)
        if len(batch) == 1:
            batch[0].result.set_exception(error)
            return
        for run in batch:
            _execute_alone(run, threads)
    else:
        for run, outputs in zip(batch, results, strict=True):
            run.result.set_result(outputs)


def _execute_alone(run: _Run, threads: int) -> None:
    try:
        run.result.set_result(_run_now([run], threads)[0])
    except BaseException as error:  # noqa: BLE001  (as above)
        run.result.set_exception(error)


def _run_now(batch: list[_Run], threads: int) -> list[list[Array]]:
    now = time.perf_counter()
    for run in batch:
        run.started = now
    first = batch[0]
    return first.context.run(first.session.run_now, [run.inputs for run in batch], threads)


def _outputs(run: _Run) -> list[Array]:
    """Wait for a run: until it begins in its task's stage `queue`, then in `inference`."""
    watch = stopwatch()
    watch.switch(QUEUE)
    try:
        return run.result.result()
    finally:
        if run.started is not None:
            watch.switch(INFERENCE, run.started)
        watch.switch(POSTPROCESS)


@dataclass(frozen=True)
class ScheduledEngine:
    """Loads graphs whose runs go through a scheduler."""

    scheduler: Scheduler
    engine_of: EngineOf
    max_batch: int = 1 << 16
    """The most items that one run may have, whatever the scheduler allows."""

    urgent: bool = False
    """Whether a person waits for the runs."""

    def load(self, path: Path) -> "ScheduledSession":
        """Load the graph at `path`, external data beside it included. Raises EngineError."""
        return ScheduledSession(self, path)


class ScheduledSession:
    """One graph, loaded once for each number of threads that it has run on."""

    def __init__(self, engine: ScheduledEngine, path: Path) -> None:
        self._engine = engine
        self._scheduler = engine.scheduler
        self._path = path
        self._loading = threading.Lock()
        # Who comes first is mostly alone, and gets all threads.
        first = engine.engine_of(self._scheduler.widths[-1]).load(path)
        self._sessions: dict[int, Session] = {self._scheduler.widths[-1]: first}
        self.inputs = first.inputs
        self.outputs = first.outputs
        self.execution_provider = first.execution_provider
        self.metadata = first.metadata
        batchable = all(info.shape[:1] == (None,) for info in (*self.inputs, *self.outputs))
        self.max_batch = engine.max_batch if batchable else 1
        """The most items that one run of this graph can have."""

    def run(self, inputs: Inputs) -> list[Array]:
        """Run the graph once, in its turn, and return its outputs in order. Raises EngineError."""
        return _outputs(self._submit(inputs))

    def run_many(self, items: Iterable[Inputs]) -> Iterator[list[Array]]:
        """Run the graph on each item, several at a time, and yield the outputs in the items' order.

        Raises EngineError.
        """
        pending: deque[_Run] = deque()
        coming = iter(items)
        try:
            while True:
                with during(PREPROCESS):
                    inputs = next(coming, None)
                if inputs is None:
                    break
                pending.append(self._submit(inputs))
                if len(pending) >= self._scheduler.window:
                    yield _outputs(pending.popleft())
            while pending:
                yield _outputs(pending.popleft())
        finally:
            for run in pending:
                run.result.cancel()

    def run_now(self, items: Sequence[Inputs], threads: int) -> list[list[Array]]:
        """Run items of one shape as one batch, on so many threads, and return the outputs of each."""
        self._scheduler.note_run(len(items))
        session = self._on(threads)
        if len(items) == 1:
            return [session.run(items[0])]
        joined = {name: np.concatenate([inputs[name] for inputs in items]) for name in items[0]}
        stops = np.cumsum([len(next(iter(inputs.values()))) for inputs in items])
        parts = [np.split(output, stops[:-1]) for output in session.run(joined)]
        return [list(outputs) for outputs in zip(*parts, strict=True)]

    def _submit(self, inputs: Inputs) -> _Run:
        run = _Run(self, inputs, Future())
        if self._engine.urgent:
            self._scheduler.search(run)
        else:
            self._scheduler.submit(run)
        return run

    def _on(self, threads: int) -> Session:
        with self._loading:
            if threads not in self._sessions:
                try:
                    self._sessions[threads] = self._engine.engine_of(threads).load(self._path)
                except EngineError as error:  # its file may have gone: what is loaded still works
                    log.warning("Not loaded again for %d threads: %s", threads, error)
                    self._sessions[threads] = next(iter(self._sessions.values()))
            return self._sessions[threads]


def scheduled(engine: Engine, *, max_batch: int | None = None, urgent: bool = False) -> Engine:
    """Return an engine whose runs are batched so far and no further, or that a person waits for.

    An engine without a scheduler runs at once what it is given, and stays as it is.
    """
    if not isinstance(engine, ScheduledEngine):
        return engine
    return replace(engine, max_batch=max_batch or engine.max_batch, urgent=urgent)
