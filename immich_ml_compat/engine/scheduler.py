"""The scheduler of a worker: which graph runs when, on how many threads, and together with what.

tasks, in any number of threads → queue → as many runs as the cores hold → results

On a CPU several runs of one thread each compute more than one run of several threads, so that is how graphs run under
load; where that would leave half of the cores idle, one run after the other gets all of them, or as many as a run has
use for. On a GPU runs of the same graph and shape that queued while the last one ran go together as one batch.
"""

import logging
import os
import sys
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

_NICENESS = 10
"""Of the threads that run photos' graphs; a search then has nine tenths of its core (sched(7))."""

Inputs = Mapping[str, Array]


@dataclass(eq=False)
class _Run:
    """One run that was asked for."""

    session: "ScheduledSession"
    inputs: Inputs
    result: "Future[list[Array]]"
    following: int = 0
    """How many of the same photo are expected to come after it."""

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

    def __init__(self, cores: int, narrow: int, wide: int, max_batch: int = 1, cpu_cores: int | None = None) -> None:
        """`narrow` and `wide` are the threads that a run has beside others and by itself.

        `max_batch` is the most items of one run, `cpu_cores` are those for what comes before graphs (None: `wide`).
        """
        self.narrow = narrow
        self.wide = wide
        self.max_batch = max_batch
        self.cores = self._free = max(cores, narrow, wide)
        self._cpu_cores = cpu_cores or wide
        self._photos = 0
        self._batches: Counter[int] = Counter()
        self._waiting: deque[_Run] = deque()
        self._lock = threading.Lock()
        self._threads = self._pool()
        self._search_thread = ThreadPoolExecutor(1, thread_name_prefix="search")

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.cores, thread_name_prefix="graph", initializer=_give_way)

    @property
    def window(self) -> int:
        """So many runs of one photo at a time keep everything busy, together with those of the others."""
        return max(2, 2 * max(self.cores // self.narrow, self.max_batch) // max(1, self._photos))

    @property
    def room(self) -> int:
        """So many photos side by side keep everything busy: while some are decoded, others are in their graphs."""
        runs = self.cores // self.narrow
        return runs + 1 if self.max_batch == 1 else 2 * runs * self.max_batch

    @property
    def spare_threads(self) -> int:
        """One photo's share of the cores, at least one thread."""
        return max(1, self._cpu_cores // max(1, self._photos))

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
        batch = [run]
        try:
            self._search_thread.submit(_execute, batch, self.narrow if busy else self.wide)
        except RuntimeError as error:
            _give_up(batch, error)

    def _pump(self) -> None:
        while self._waiting and self._free >= self.narrow:
            batch = self._take()
            threads = self.wide if self._is_calm(batch[-1].following) else self.narrow
            self._free -= threads
            try:
                self._threads.submit(self._do, batch, threads)
            except RuntimeError as error:
                self._free += threads
                _give_up(batch, error)
                self._threads.shutdown(wait=False)  # from now on it would count a thread too many
                self._threads = self._pool()

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

    def _is_calm(self, following: int) -> bool:
        """Tell whether the next run should be wide: there is room, and all that is to be done would not fill half."""
        demand = max(self._photos, 1 + max(len(self._waiting), following)) * self.narrow
        return self._free >= self.wide and (demand == self.narrow or 2 * demand <= self.cores)

    def _do(self, batch: list[_Run], threads: int) -> None:
        with self._lock:
            if not batch:  # it was given up
                return
        try:
            _execute(batch, threads)
        finally:
            with self._lock:
                self._free += threads
                self._pump()


def _give_way() -> None:
    """Let other threads go before this one where they want the same core: a search, above all."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.nice(_NICENESS)


def _give_up(batch: list[_Run], error: RuntimeError) -> None:
    """Fail runs that the system has no thread for, and empty the batch: the pool keeps what it could not begin."""
    for run in batch:
        if run.result.set_running_or_notify_cancel():
            run.result.set_exception(EngineError(f"no thread to run a graph on: {error}"))
    batch.clear()


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

    def release(self) -> None:
        """Give back the memory that past runs needed."""
        self.engine_of(self.scheduler.narrow).release()


class ScheduledSession:
    """One graph, loaded once for each number of threads that it has run on."""

    def __init__(self, engine: ScheduledEngine, path: Path) -> None:
        self._engine = engine
        self._scheduler = engine.scheduler
        self._path = path
        self._loading = threading.Lock()
        # Who comes first is mostly alone. A search is not to wait for the second load.
        wide, narrow = self._scheduler.wide, self._scheduler.narrow
        self._first = first = engine.engine_of(wide).load(path)
        self._sessions: dict[int, Session] = {wide: first}
        if engine.urgent and narrow != wide:
            self._sessions[narrow] = engine.engine_of(narrow).load(path)
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

    def run_many(self, items: Iterable[Inputs], expected: int = 1) -> Iterator[list[Array]]:
        """Run the graph on each item, several at a time, and yield the outputs in the items' order.

        `expected` is how many there will be, or about. Raises EngineError.
        """
        pending: deque[_Run] = deque()
        coming = iter(items)
        try:
            while True:
                with during(PREPROCESS):
                    inputs = next(coming, None)
                if inputs is None:
                    break
                expected -= 1
                pending.append(self._submit(inputs, following=max(0, expected)))
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
        outputs = session.run(joined)
        if any(len(output) != stops[-1] for output in outputs):
            raise EngineError(f"{self._path}: its outputs are not one for each item, so it runs one at a time")
        parts = [np.split(output, stops[:-1]) for output in outputs]
        return [list(part) for part in zip(*parts, strict=True)]

    @property
    def spare_threads(self) -> int:
        """One photo's share of the cores, at least one thread."""
        return self._scheduler.spare_threads

    def _submit(self, inputs: Inputs, following: int = 0) -> _Run:
        run = _Run(self, inputs, Future(), following)
        if self._engine.urgent:
            self._scheduler.search(run)
        else:
            self._scheduler.submit(run)
        return run

    def _on(self, threads: int) -> Session:
        """The session for so many threads; the first one while that is loaded."""
        session = self._sessions.get(threads)
        if session is not None:
            return session
        if not self._loading.acquire(blocking=False):
            return self._first
        try:
            if threads not in self._sessions:
                self._sessions[threads] = self._load_for(threads)
            return self._sessions[threads]
        finally:
            self._loading.release()

    def _load_for(self, threads: int) -> Session:
        try:
            return self._engine.engine_of(threads).load(self._path)
        except (EngineError, MemoryError) as error:  # its file may have gone: what is loaded still works
            log.warning("Not loaded again for %d threads: %s", threads, error)
            return self._first


def scheduled(engine: Engine, *, max_batch: int | None = None, urgent: bool = False) -> Engine:
    """Return an engine whose runs are batched so far and no further, or that a person waits for.

    An engine without a scheduler runs at once what it is given, and stays as it is.
    """
    if not isinstance(engine, ScheduledEngine):
        return engine
    return replace(engine, max_batch=max_batch or engine.max_batch, urgent=urgent)
