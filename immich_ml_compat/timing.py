"""How long the stages of a request's tasks take, in the worker.

    decode → load (where the model is not in memory) → preprocess → queue → inference → postprocess

The stages of a task add up to the time that it took, however many graphs run side by side: what counts is what the
request's own thread does or waits for.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

DECODE, LOAD, PREPROCESS = "decode", "load", "preprocess"
QUEUE, INFERENCE, POSTPROCESS = "queue", "inference", "postprocess"

Stages = dict[str, dict[str, float]]
"""The seconds of each stage of each task: {task: {stage: seconds}}."""


class Stopwatch:
    """Gives the passing time to one stage after the other: at first to preprocessing, after a run to postprocessing."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._stage = PREPROCESS
        self._since = clock()

    def switch(self, stage: str, at: float | None = None) -> str:
        """Have a stage begin, now or at a time that has passed since the last one began; return the one that ends."""
        now = self._clock()
        now = now if at is None else min(max(at, self._since), now)
        self.seconds[self._stage] += now - self._since
        ended, self._stage, self._since = self._stage, stage, now
        return ended


_STAGES: ContextVar[Stages | None] = ContextVar("stages", default=None)
_STOPWATCH: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


def stopwatch() -> Stopwatch:
    """Return the stopwatch of the task that the running code works for; where there is none, one that nobody reads."""
    return _STOPWATCH.get() or Stopwatch()


@contextmanager
def recording() -> Iterator[Stages]:
    """Record the stages of the tasks that are run within."""
    stages: Stages = {}
    token = _STAGES.set(stages)
    try:
        yield stages
    finally:
        _STAGES.reset(token)


@contextmanager
def timed(task: str) -> Iterator[None]:
    """Run one task of a request within."""
    watch = Stopwatch()
    token = _STOPWATCH.set(watch)
    try:
        yield
    finally:
        _STOPWATCH.reset(token)
        watch.switch(POSTPROCESS)
        if (stages := _STAGES.get()) is not None:
            stages[str(task)] = dict(watch.seconds)  # a plain text, which JSON takes as a key


@contextmanager
def during(stage: str) -> Iterator[None]:
    """Give the time that is spent within to a stage, and what comes after to the one before."""
    watch = stopwatch()
    before = watch.switch(stage)
    try:
        yield
    finally:
        watch.switch(before)
