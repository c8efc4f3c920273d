"""The scheduler: how many threads a run gets, what goes in one batch, and that nobody waits for ever."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from immich_ml_compat.engine import Array, EngineError, OneByOne, TensorInfo
from immich_ml_compat.engine.scheduler import ScheduledEngine, ScheduledSession, Scheduler, scheduled
from immich_ml_compat.engine_choice import Choice
from immich_ml_compat.engines import make_scheduler
from immich_ml_compat.settings import Settings

NOWHERE = Path("model.onnx")
PATIENCE_S = 20


def double(x: Array) -> Array:
    return 2 * x


@dataclass
class Bench(OneByOne):
    """An engine for each number of threads, all of one graph, that notes what runs when."""

    compute: Callable[[Array], Array] = double
    batch_axis: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    """Runs end once it is set."""

    loaded: list[int] = field(default_factory=list)
    begun: list[tuple[int, Array]] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def engine(self, threads: int) -> "BenchEngine":
        return BenchEngine(self, threads)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        raise NotImplementedError

    def wait_for_runs(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(self.begun) < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)


@dataclass
class BenchEngine:
    bench: Bench
    threads: int

    def load(self, path: Path) -> "BenchSession":
        self.bench.loaded.append(self.threads)
        return BenchSession(self.bench, self.threads)

    def release(self) -> None:
        pass


class BenchSession(OneByOne):
    execution_provider = "bench"
    metadata: Mapping[str, str] = {}

    def __init__(self, bench: Bench, threads: int) -> None:
        self._bench, self._threads = bench, threads
        self.inputs = [TensorInfo("x", np.dtype(np.float32), (bench.batch_axis, None))]
        self.outputs = [TensorInfo("y", np.dtype(np.float32), (bench.batch_axis, None))]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        bench = self._bench
        with bench.lock:
            bench.begun.append((self._threads, inputs["x"]))
            bench.busy += self._threads
            bench.most_busy = max(bench.most_busy, bench.busy)
        try:
            assert bench.gate.wait(PATIENCE_S)
            return [bench.compute(inputs["x"])]
        finally:
            with bench.lock:
                bench.busy -= self._threads


def opened(bench: Bench, scheduler: Scheduler, **how: bool) -> ScheduledSession:
    return ScheduledEngine(scheduler, bench.engine, **how).load(NOWHERE)


def ones(*shape: int) -> Mapping[str, Array]:
    return {"x": np.ones(shape, np.float32)}


# ---------------------------------------------------------------- threads


def test_a_photo_that_is_alone_gets_all_cores() -> None:
    bench, scheduler = Bench(), Scheduler(4, 1, 4)
    bench.gate.set()
    session = opened(bench, scheduler)
    with scheduler.photo():
        session.run(ones(1, 3))
    assert [threads for threads, _ in bench.begun] == [4]
    assert bench.loaded == [4]


@pytest.mark.parametrize(("photos", "threads"), [(1, 4), (2, 4), (3, 1), (9, 1)])
def test_photos_share_the_cores(photos: int, threads: int) -> None:
    bench, scheduler = Bench(), Scheduler(4, 1, 4)
    bench.gate.set()
    session = opened(bench, scheduler)
    with ExitStack() as stack:
        for _ in range(photos):
            stack.enter_context(scheduler.photo())
        session.run(ones(1, 3))
    assert [each for each, _ in bench.begun] == [threads]


@pytest.mark.parametrize(
    ("cores", "asked", "photos", "runs"),
    [
        (64, {}, 8, [16] * 4),
        (24, {}, 2, [12] * 2),
        (6, {}, 2, [6]),
        (16, {"model_intra_op_threads": 2}, 4, [2] * 4),
        (8, {"model_intra_op_threads": 3}, 3, [3] * 2),
    ],
)
def test_a_run_takes_no_more_cores_than_it_has_threads(
    cores: int, asked: dict[str, Any], photos: int, runs: list[int]
) -> None:
    bench, scheduler = Bench(), make_scheduler(Choice("onnxruntime", "cpu", "fp32", ""), Settings(**asked), cores)
    session = opened(bench, scheduler)
    with ExitStack() as stack, ThreadPoolExecutor(photos) as pool:
        for _ in range(photos):
            stack.enter_context(scheduler.photo())
        results = [pool.submit(session.run, ones(1, 1)) for _ in range(photos)]
        bench.wait_for_runs(len(runs))
        while len(scheduler._waiting) < photos - len(runs):
            time.sleep(0.001)
        assert [threads for threads, _ in bench.begun] == runs
        bench.gate.set()
        assert all(result.result(PATIENCE_S) for result in results)


def test_lines_of_one_photo_run_side_by_side_and_come_in_order() -> None:
    def slowly(x: Array) -> Array:
        time.sleep(0.01)  # while the next lines are handed in
        return 2 * x

    bench, scheduler = Bench(slowly), Scheduler(4, 1, 4)
    session = opened(bench, scheduler)
    with scheduler.photo(), ThreadPoolExecutor(1) as pool:
        lines = [{"x": np.full((1, 2), i, np.float32)} for i in range(20)]
        reading = pool.submit(lambda: [float(y[0, 0]) for (y,) in session.run_many(lines)])
        bench.gate.set()
        assert reading.result(PATIENCE_S) == [2.0 * i for i in range(20)]
    assert {threads for threads, _ in bench.begun[4:-4]} == {1}


@pytest.mark.parametrize(("cores", "lines", "threads"), [(2, 5, 1), (2, 1, 2), (4, 2, 4), (4, 3, 1), (16, 8, 16)])
def test_the_first_of_a_photos_lines_leaves_cores_to_those_that_follow(cores: int, lines: int, threads: int) -> None:
    bench, scheduler = Bench(), Scheduler(cores, 1, cores)
    bench.gate.set()
    session = opened(bench, scheduler)
    with scheduler.photo():
        assert len(list(session.run_many([ones(1, 1)] * lines, expected=lines))) == lines
    assert bench.begun[0][0] == threads


@pytest.mark.parametrize("expected", [0, 1, 9])
def test_a_wrong_guess_of_their_number_changes_no_result(expected: int) -> None:
    bench, scheduler = Bench(), Scheduler(2, 1, 2)
    bench.gate.set()
    session = opened(bench, scheduler)
    lines = [{"x": np.full((1, 1), i, np.float32)} for i in range(6)]
    assert [float(y[0, 0]) for (y,) in session.run_many(lines, expected)] == [2.0 * i for i in range(6)]


@pytest.mark.parametrize(
    ("choice", "cores", "photos", "threads"),
    [
        (Choice("onnxruntime", "cpu", "fp32", ""), 4, 0, 4),
        (Choice("onnxruntime", "cpu", "fp32", ""), 4, 1, 4),
        (Choice("onnxruntime", "cpu", "fp32", ""), 4, 3, 1),
        (Choice("onnxruntime", "cpu", "fp32", ""), 4, 9, 1),
        (Choice("onnxruntime", "cuda", "fp16", ""), 16, 1, 16),
        (Choice("onnxruntime", "cuda", "fp16", ""), 16, 4, 4),
    ],
)
def test_photos_share_the_cores_for_what_comes_before_graphs(
    choice: Choice, cores: int, photos: int, threads: int
) -> None:
    scheduler = make_scheduler(choice, Settings(), cores)
    session = opened(Bench(), scheduler)
    with ExitStack() as stack:
        for _ in range(photos):
            stack.enter_context(scheduler.photo())
        assert session.spare_threads == threads


def test_items_are_taken_as_they_are_needed() -> None:
    bench, scheduler = Bench(), Scheduler(2, 1, 1)
    session = opened(bench, scheduler)
    taken: list[int] = []

    def items() -> Iterator[Mapping[str, Array]]:
        for i in range(100):
            taken.append(i)
            yield ones(1, 1)

    bench.gate.set()
    results = session.run_many(items())
    next(results)
    assert len(taken) == scheduler.window < 100


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=12), st.sampled_from([1, 3, 32]))
def test_every_run_is_done_and_threads_never_exceed_the_cores(cores: int, requests: list[int], most: int) -> None:
    def slowly(x: Array) -> Array:
        time.sleep(0.001)  # so that runs meet
        return 2 * x

    bench, scheduler = Bench(slowly), Scheduler(cores, 1, cores, max_batch=most)
    bench.gate.set()
    session = opened(bench, scheduler)
    session.run_now([ones(1, 1)], 1)  # so that it is loaded for one thread too

    def request(number: int, runs: int) -> bool:
        with scheduler.photo():
            values = [number + i / 8 for i in range(runs)]
            results = session.run_many({"x": np.full((1, 1 + i % 2), v, np.float32)} for i, v in enumerate(values))
            return [float(y[0, 0]) for (y,) in results] == [2 * value for value in values]

    with ThreadPoolExecutor(len(requests)) as pool:
        assert all(pool.map(request, range(len(requests)), requests))
    assert bench.most_busy <= cores


# ---------------------------------------------------------------- batches


def queued(bench: Bench, scheduler: Scheduler, shapes: list[tuple[int, ...]]) -> list[int]:
    """Run one thing, let the others queue meanwhile, and return how many items each run had."""
    session = opened(bench, scheduler)
    with ThreadPoolExecutor(len(shapes)) as pool:
        first = pool.submit(session.run, ones(*shapes[0]))
        bench.wait_for_runs(1)
        others = [pool.submit(session.run, ones(*shape)) for shape in shapes[1:]]
        while len(scheduler._waiting) < len(others):
            time.sleep(0.001)
        bench.gate.set()
        for shape, result in zip(shapes, [first, *others], strict=True):
            assert result.result(PATIENCE_S)[0].shape == shape
    return [len(x) for _, x in bench.begun]


def test_what_queued_while_the_last_one_ran_goes_together() -> None:
    assert queued(Bench(), Scheduler(1, 1, 1, max_batch=32), [(1, 4)] * 6) == [1, 5]


def test_batches_have_a_limit() -> None:
    assert queued(Bench(), Scheduler(1, 1, 1, max_batch=2), [(1, 4)] * 6) == [1, 2, 2, 1]


def test_only_what_has_one_shape_goes_together() -> None:
    assert queued(Bench(), Scheduler(1, 1, 1, max_batch=32), [(1, 4), (1, 5), (1, 4), (1, 5)]) == [1, 2, 1]


def test_a_graph_for_one_item_gets_one() -> None:
    assert queued(Bench(batch_axis=1), Scheduler(1, 1, 1, max_batch=32), [(1, 4)] * 3) == [1, 1, 1]


def test_an_engine_may_limit_batches_further() -> None:
    bench = Bench()
    engine = scheduled(ScheduledEngine(Scheduler(1, 1, 1, max_batch=32), bench.engine), max_batch=3)
    session = engine.load(NOWHERE)
    assert isinstance(session, ScheduledSession)
    assert session.max_batch == 3
    assert scheduled(bench.engine(1), max_batch=3) == bench.engine(1)


def test_a_bad_item_fails_alone() -> None:
    def refuse(x: Array) -> Array:
        if (x < 0).any():
            raise EngineError("negative")
        return 2 * x

    bench, scheduler = Bench(refuse), Scheduler(1, 1, 1, max_batch=32)
    session = opened(bench, scheduler)
    with ThreadPoolExecutor(5) as pool:
        results = [pool.submit(session.run, {"x": np.full((1, 1), v, np.float32)}) for v in (1, 2, -3, 4, 5)]
        bench.wait_for_runs(1)
        bench.gate.set()
        for value, result in zip((1, 2, -3, 4, 5), results, strict=True):
            if value < 0:
                with pytest.raises(EngineError, match="negative"):
                    result.result(PATIENCE_S)
            else:
                assert result.result(PATIENCE_S)[0][0, 0] == 2 * value


# ---------------------------------------------------------------- nobody waits for ever


class Panic(BaseException):
    """What a library in Rust raises."""


@pytest.mark.parametrize("error", [EngineError("no"), MemoryError(), Panic()])
def test_whatever_a_run_raises_reaches_who_waits_and_the_next_one_runs(error: BaseException) -> None:
    failing = [True]

    def fail_once(x: Array) -> Array:
        if failing:
            failing.clear()
            raise error
        return 2 * x

    bench, scheduler = Bench(fail_once), Scheduler(2, 1, 2)
    bench.gate.set()
    session = opened(bench, scheduler)
    with pytest.raises(type(error)):
        session.run(ones(1, 1))
    assert session.run(ones(1, 1))[0][0, 0] == 2


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_run_without_a_thread_fails_and_those_after_it_have_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, scheduler = Bench(), Scheduler(2, 1, 1)
    session = opened(bench, scheduler)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(session.run, ones(1, 1))
        bench.wait_for_runs(1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(EngineError, match="no thread"):
                session.run(ones(1, 1))
        bench.gate.set()
        assert first.result(PATIENCE_S)
        while scheduler._free < scheduler.cores:
            time.sleep(0.001)
        bench.gate.clear()
        others = [pool.submit(session.run, ones(1, 1)) for _ in range(3)]
        bench.wait_for_runs(1 + scheduler.cores)
        assert scheduler._free == 0
        bench.gate.set()
        assert all(other.result(PATIENCE_S) for other in others)
    assert len(bench.begun) == 4
    assert bench.most_busy == scheduler.cores


def test_a_search_without_a_thread_fails_and_the_next_one_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, scheduler = Bench(), Scheduler(2, 1, 2)
    bench.gate.set()
    session = opened(bench, scheduler, urgent=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(EngineError, match="no thread"):
            session.run(ones(1, 1))
    assert session.run(ones(1, 1))[0][0, 0] == 2
    assert len(bench.begun) == 1


def test_what_nobody_waits_for_is_not_run() -> None:
    def fail(x: Array) -> Array:
        raise EngineError("no")

    bench, scheduler = Bench(fail), Scheduler(1, 1, 1)
    bench.gate.set()
    session = opened(bench, scheduler)
    with pytest.raises(EngineError):
        list(session.run_many([ones(1, 1)] * 50))
    assert len(bench.begun) <= scheduler.window


def test_a_search_waits_for_no_photo() -> None:
    photos, searches, scheduler = Bench(), Bench(), Scheduler(2, 1, 2)
    searches.gate.set()
    photo, search = opened(photos, scheduler), opened(searches, scheduler, urgent=True)
    with ThreadPoolExecutor(4) as pool:
        held = [pool.submit(photo.run, ones(1, 1)) for _ in range(4)]
        photos.wait_for_runs(1)
        assert search.run(ones(1, 1))[0][0, 0] == 2
        assert not any(result.done() for result in held)
        photos.gate.set()
        assert all(result.result(PATIENCE_S) for result in held)
    while scheduler._free < scheduler.cores:  # results come a little before the cores
        time.sleep(0.001)
    assert search.run(ones(1, 1))[0][0, 0] == 2
    assert [threads for threads, _ in searches.begun] == [1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="only there have threads a priority of their own")
def test_photos_give_way_to_searches() -> None:
    def priority(x: Array) -> Array:
        return np.full_like(x, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    bench, scheduler = Bench(priority), Scheduler(2, 1, 2)
    bench.gate.set()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert opened(bench, scheduler).run(ones(1, 1))[0][0, 0] == min(own + 10, 19)
    assert opened(bench, scheduler, urgent=True).run(ones(1, 1))[0][0, 0] == own


def test_a_graph_that_cannot_be_loaded_again_goes_on_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    bench, scheduler = Bench(), Scheduler(2, 1, 2)
    bench.gate.set()

    def only_wide(threads: int) -> BenchEngine:
        if threads == 1:
            raise EngineError("gone")
        return bench.engine(threads)

    session = ScheduledEngine(scheduler, only_wide).load(NOWHERE)
    with scheduler.photo(), scheduler.photo():
        assert session.run(ones(1, 1))[0][0, 0] == 2
    assert "gone" in caplog.text


# ---------------------------------------------------------------- for a machine


@pytest.mark.parametrize(
    ("cores", "asked", "narrow", "wide", "room"),
    [
        (1, {}, 1, 1, 2),
        (2, {}, 1, 2, 3),
        (6, {}, 1, 6, 7),
        (24, {}, 1, 12, 25),
        (64, {}, 1, 16, 65),
        (16, {"workers": 4}, 1, 4, 5),
        (16, {"workers": 2, "device_ids": (0, 1)}, 1, 4, 5),
        (16, {"workers": 64}, 1, 1, 2),
        (8, {"model_intra_op_threads": 4}, 4, 4, 3),
        (2, {"model_intra_op_threads": 64}, 2, 2, 2),
    ],
)
def test_machines(cores: int, asked: dict[str, Any], narrow: int, wide: int, room: int) -> None:
    scheduler = make_scheduler(Choice("onnxruntime", "cpu", "fp32", ""), Settings(**asked), cores)
    assert (scheduler.narrow, scheduler.wide, scheduler.room, scheduler.max_batch) == (narrow, wide, room, 1)


def test_a_gpu_takes_batches() -> None:
    scheduler = make_scheduler(Choice("onnxruntime", "cuda", "fp32", ""), Settings(), 16)
    assert (scheduler.narrow, scheduler.wide, scheduler.room, scheduler.max_batch) == (1, 1, 64, 32)
