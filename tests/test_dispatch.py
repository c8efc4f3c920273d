"""The queue, with workers of the test's own: what an operating system or a mistake can do to it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_ml_compat import dispatch
from immich_ml_compat.dispatch import Dispatcher
from immich_ml_compat.link import Change, Done, Idle, Work
from immich_ml_compat.messages import Answer, ModelChange, PredictRequest
from immich_ml_compat.process import Patience, StartError, WorkerDiedError, WorkerProcess
from immich_ml_compat.seats import Job, Seat
from immich_ml_compat.status import WorkerStatus

REQUEST = PredictRequest("{}", image=b"sea")
SEARCH = PredictRequest("{}", text="sea")
GOOD = Answer(200, b"{}")
LOAD = ModelChange(True, "ocr", "detection", "PP-OCRv6_small")
UNLOAD = replace(LOAD, load=False)


class FakeWorker:
    """A worker that answers each request with the next of its script; an exception there ends it."""

    def __init__(self, *script: Answer | Exception, room: int = 2, pid: int = 1) -> None:
        self.room = room
        self.pid = pid
        self.taken: list[Work] = []
        self.changes: list[Change] = []
        self.most = 0
        self.stopped = False
        self._script = list(script)
        self._work: asyncio.Queue[Work | Change | None] = asyncio.Queue()

    def send(self, work: Work | Change) -> None:
        if isinstance(work, Change):
            self.changes.append(work)
        else:
            self.taken.append(work)
        self._work.put_nowait(work)
        self.most = max(self.most, self._work.qsize())

    async def receive(self) -> Done | Idle:
        work = await self._work.get()
        if work is None:
            return Idle()
        step = self._script.pop(0) if self._script else GOOD
        if isinstance(step, Exception):
            raise step
        return Done(work.id, step)

    def idle(self) -> None:
        self._work.put_nowait(None)

    async def stop(self) -> None:
        self.stopped = True

    async def kill(self) -> None:
        self.stopped = True


def dispatcher(*starts: FakeWorker | Exception, seats: int = 1, keep_running: bool = False) -> Dispatcher:
    """A dispatcher whose workers start in this order; when they are used up, starting fails."""
    waiting = list(starts)

    async def start(_device_id: int) -> WorkerProcess:
        step = waiting.pop(0) if waiting else StartError("no more")
        if isinstance(step, Exception):
            raise step
        return cast(WorkerProcess, step)

    return Dispatcher([0] * seats, start, keep_running=keep_running)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body(), 20)

    asyncio.run(bounded())


def test_one_or_two_failed_starts_are_no_trouble() -> None:
    async def body() -> None:
        queue = dispatcher(StartError("a"), StartError("b"), FakeWorker())
        assert await queue.answer(REQUEST) == GOOD
        assert queue.trouble is None

    run(body)


def test_three_failed_starts_in_a_row_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "RETRY_S", 0.05)

    async def body() -> None:
        queue = dispatcher(*(StartError(f"cause {i}") for i in range(5)), FakeWorker())
        answer = await queue.answer(REQUEST)
        assert answer.status == 503
        assert b"cause 2" in answer.body
        assert queue.trouble == "cause 2"
        assert (await queue.answer(REQUEST)).status == 503
        while queue.trouble is not None:
            await asyncio.sleep(0.01)
        assert await queue.answer(REQUEST) == GOOD

    run(body)


def test_a_process_that_the_system_refuses_is_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)

    async def body() -> None:
        with pytest.raises(StartError, match="temporarily unavailable"):
            await WorkerProcess.start(0, Patience())
        queue = Dispatcher([0], lambda device_id: WorkerProcess.start(device_id, Patience()))
        assert (await queue.answer(REQUEST)).status == 503

    run(body)


def test_a_mistake_in_the_front_leaves_nobody_waiting() -> None:
    async def body() -> None:
        confusing = FakeWorker(KeyError("what?"), room=4)
        queue = dispatcher(confusing, FakeWorker())
        answers = await asyncio.gather(*(queue.answer(REQUEST) for _ in range(4)))
        assert answers == [GOOD] * 4
        assert confusing.stopped

    run(body)


def test_requests_of_a_dead_worker_run_again_alone_and_before_the_others() -> None:
    async def body() -> None:
        first, second = FakeWorker(WorkerDiedError("gone"), room=3), FakeWorker(room=3)
        queue = dispatcher(first, second)
        answers = await asyncio.gather(*(queue.answer(REQUEST) for _ in range(6)))
        assert answers == [GOOD] * 6
        assert [work.id for work in second.taken] == [0, 1, 2, 3, 4, 5]
        assert second.most > 1, "those that were in no dead worker run side by side"

    run(body)


def test_workers_that_die_of_all_they_are_given_are_trouble_until_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        deaths = [WorkerDiedError(f"death {number}") for number in range(1, 9)]
        queue = dispatcher(*(FakeWorker(death) for death in deaths), FakeWorker())
        for killers in (1, 2, 3):
            assert queue.trouble is None
            assert (await queue.answer(REQUEST)).status == 500, f"{killers} kill all"
        assert queue.trouble == "Inference workers die of all that they are given: death 6"
        monkeypatch.setattr(dispatch, "DEATHS_TOLD_S", 0.0)
        assert queue.trouble is None, "nobody may have tried since"
        monkeypatch.undo()
        assert (await queue.answer(REQUEST)).status == 500, "it is tried all the same"
        assert str(queue.trouble).endswith("death 8")
        assert await queue.answer(REQUEST) == GOOD
        assert queue.trouble is None

    run(body)


def test_a_request_that_kills_twice_gets_an_error_that_says_so() -> None:
    async def body() -> None:
        queue = dispatcher(FakeWorker(WorkerDiedError("SIGSEGV")), FakeWorker(WorkerDiedError("SIGSEGV")), FakeWorker())
        answer = await queue.answer(REQUEST)
        assert answer.status == 500
        assert b"SIGSEGV" in answer.body
        assert await queue.answer(REQUEST) == GOOD

    run(body)


def test_a_worker_never_has_more_than_it_has_room_for() -> None:
    async def body() -> None:
        worker = FakeWorker(room=2)
        queue = dispatcher(worker)
        await asyncio.gather(*(queue.answer(REQUEST) for _ in range(20)))
        assert len(worker.taken) == 20
        assert worker.most <= 2

    run(body)


def test_a_search_has_its_place_whatever_photos_wait_for() -> None:
    """Once a download has come, all the photos that waited for it are still there."""

    def job(request: PredictRequest) -> Job:
        return Job(len(seat.jobs), request, cast("asyncio.Future[Answer]", None), 0.0)

    seat = Seat(0, cast(WorkerProcess, FakeWorker(room=3)))
    seat.status = WorkerStatus(1, 0, "none", "fp32", (), (), 0, None, 0.0, 0, fetching=16)
    while seat.has_room(job(REQUEST), photos_wait=True):
        seat.jobs[len(seat.jobs)] = job(REQUEST)
    assert len(seat.jobs) == 3 + 16
    seat.status = replace(seat.status, fetching=0)
    assert not seat.has_room(job(REQUEST), photos_wait=True)
    for photos_wait in (True, False):
        assert seat.has_room(job(SEARCH), photos_wait)
    seat.jobs[len(seat.jobs)] = job(SEARCH)
    for photos_wait in (True, False):
        assert not seat.has_room(job(SEARCH), photos_wait)


SHORT = Answer(400, b'{"detail":"memory"}', out_of_memory=True)


def test_what_runs_out_of_memory_is_run_again_alone() -> None:
    async def body() -> None:
        worker = FakeWorker(SHORT, SHORT, room=3)
        queue = dispatcher(worker)
        answers = await asyncio.gather(*(queue.answer(REQUEST) for _ in range(6)))
        assert answers == [GOOD] * 6
        assert len(worker.taken) == 8

    run(body)


def test_what_runs_out_of_memory_alone_is_answered_so() -> None:
    async def body() -> None:
        worker = FakeWorker(SHORT, SHORT, room=3)
        queue = dispatcher(worker)
        assert await queue.answer(REQUEST) == SHORT
        assert len(worker.taken) == 2
        assert await queue.answer(REQUEST) == GOOD

    run(body)


class SlowWorker(FakeWorker):
    """A worker that answers when it is told to."""

    def __init__(self, room: int) -> None:
        super().__init__(room=room)
        self.has: list[Work] = []
        self._done: asyncio.Queue[Done] = asyncio.Queue()

    def send(self, work: Work | Change) -> None:
        assert isinstance(work, Work)
        self.taken.append(work)
        self.has.append(work)

    def finish(self, place: int, answer: Answer = GOOD) -> None:
        self._done.put_nowait(Done(self.has.pop(place).id, answer))

    async def receive(self) -> Done | Idle:
        return await self._done.get()

    def count(self, request: PredictRequest) -> int:
        return sum(work.request is request for work in self.has)


def test_a_search_is_taken_beside_photos_and_before_those_that_wait() -> None:
    async def body() -> None:
        worker = SlowWorker(room=2)
        queue = dispatcher(worker)
        photos = [asyncio.ensure_future(queue.answer(REQUEST)) for _ in range(9)]
        await asyncio.sleep(0.01)
        assert worker.count(REQUEST) == 2
        searches = [asyncio.ensure_future(queue.answer(SEARCH)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert (worker.count(REQUEST), worker.count(SEARCH)) == (2, 1), "one, as photos wait as well"
        while worker.has:
            worker.finish(-1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert await asyncio.gather(*photos, *searches) == [GOOD] * 12

    run(body)


@pytest.mark.parametrize(("first", "flood"), [(REQUEST, SEARCH), (SEARCH, REQUEST)])
def test_a_flood_does_not_keep_a_request_from_being_alone(first: PredictRequest, flood: PredictRequest) -> None:
    async def body() -> None:
        worker = SlowWorker(room=2)
        queue = dispatcher(worker)
        answers = [asyncio.ensure_future(queue.answer(first))]
        await asyncio.sleep(0.01)
        answers += [asyncio.ensure_future(queue.answer(flood)) for _ in range(2)]
        await asyncio.sleep(0.01)
        worker.finish(0, SHORT)
        for _ in range(9):  # there is always one that runs and one that waits
            answers.append(asyncio.ensure_future(queue.answer(flood)))
            await asyncio.sleep(0.01)
            if worker.count(first):
                break
            worker.finish(0)
        assert worker.count(first) == 1
        assert worker.count(flood) == 0, "it is alone"
        while worker.has:
            worker.finish(0)
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*answers) == [GOOD] * len(answers)

    run(body)


def test_searches_use_all_the_room_where_no_photo_waits() -> None:
    async def body() -> None:
        worker = SlowWorker(room=2)
        queue = dispatcher(worker)
        searches = [asyncio.ensure_future(queue.answer(SEARCH)) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert len(worker.has) == 3
        while worker.has:
            worker.finish(0)
            await asyncio.sleep(0.001)
        assert await asyncio.gather(*searches) == [GOOD] * 5

    run(body)


def test_a_flood_of_searches_gives_way_to_photos() -> None:
    async def body() -> None:
        worker = SlowWorker(room=2)
        queue = dispatcher(worker)
        answers = [asyncio.ensure_future(queue.answer(SEARCH)) for _ in range(20)]
        await asyncio.sleep(0.01)
        answers += [asyncio.ensure_future(queue.answer(REQUEST)) for _ in range(4)]
        await asyncio.sleep(0.01)
        for _ in range(2):
            worker.finish(0)
            await asyncio.sleep(0.001)
        assert (worker.count(REQUEST), worker.count(SEARCH)) == (2, 1)
        while worker.has:
            worker.finish(0)
            await asyncio.sleep(0.001)
        assert await asyncio.gather(*answers) == [GOOD] * 24

    run(body)


@given(
    arrivals=st.lists(st.sampled_from([SEARCH, REQUEST]), max_size=30),
    finished=st.lists(st.integers(0, 10), max_size=60),
    room=st.integers(1, 3),
)
def test_neither_photos_nor_searches_starve(arrivals: list[PredictRequest], finished: list[int], room: int) -> None:
    """Whatever comes and in whatever order work ends, both kinds move on, each in its order."""

    async def body() -> None:
        worker = SlowWorker(room)
        queue = dispatcher(worker)
        answers = []
        for step in range(max(len(arrivals), len(finished))):
            if step < len(arrivals):
                answers.append(asyncio.ensure_future(queue.answer(arrivals[step])))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if step < len(finished) and worker.has:
                worker.finish(finished[step] % len(worker.has))
                await asyncio.sleep(0)
            check(worker, arrivals[: step + 1], room)
        while worker.has:
            worker.finish(0)
            for _ in range(4):
                await asyncio.sleep(0)
        assert [await answer for answer in answers] == [GOOD] * len(arrivals)

    run(body)


def check(worker: SlowWorker, arrived: list[PredictRequest], room: int) -> None:
    assert worker.count(REQUEST) <= room
    assert len(worker.has) <= room + 1
    for kind in (REQUEST, SEARCH):
        ids = [work.id for work in worker.taken if work.request is kind]
        assert ids == sorted(ids), "first come, first served, within a kind"
    waiting = {
        kind: arrived.count(kind) - sum(work.request is kind for work in worker.taken) for kind in (REQUEST, SEARCH)
    }
    if waiting[SEARCH] > 0 and worker.taken:
        assert worker.count(SEARCH) >= 1, "a search waits for searches only"
    if waiting[REQUEST] > 0 and worker.taken:
        assert worker.count(REQUEST) + max(0, worker.count(SEARCH) - 1) >= room, "a photo waits for what came before"


def test_work_that_crosses_with_idle_is_done() -> None:
    async def body() -> None:
        worker = FakeWorker()
        queue = dispatcher(worker, FakeWorker())
        assert await queue.answer(REQUEST) == GOOD
        waiting = asyncio.ensure_future(queue.answer(REQUEST))
        worker.idle()
        assert await waiting == GOOD
        assert await queue.answer(REQUEST) == GOOD

    run(body)


def test_whoever_goes_leaves_the_queue() -> None:
    async def body() -> None:
        never: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()

        async def start(_: int) -> WorkerProcess:
            return await never

        queue = Dispatcher([0], start)
        waiting = asyncio.ensure_future(queue.answer(REQUEST))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        worker = FakeWorker()
        never.set_result(cast(WorkerProcess, worker))
        assert await queue.answer(REQUEST) == GOOD
        assert len(worker.taken) == 1

    run(body)


def test_a_worker_that_cannot_start_does_not_stop_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "RETRY_S", 3600)

    async def body() -> None:
        healthy = FakeWorker(room=1)
        queue = dispatcher(healthy, *(StartError("no second GPU") for _ in range(9)), seats=2)
        answers = await asyncio.gather(*(queue.answer(REQUEST) for _ in range(12)))
        assert answers == [GOOD] * 12
        assert queue.trouble is None

    run(body)


def test_workers_that_die_of_their_own_are_not_started_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "RETRY_S", 3600)

    class Doomed(FakeWorker):
        async def receive(self) -> Done | Idle:
            raise WorkerDiedError("a preloaded model")

    async def body() -> None:
        started = 0

        async def start(_: int) -> WorkerProcess:
            nonlocal started
            started += 1
            return cast(WorkerProcess, Doomed())

        queue = Dispatcher([0], start, keep_running=True)
        queue.open()
        while queue.trouble is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert started == dispatch.START_ATTEMPTS
        assert queue.trouble == "a preloaded model"

    run(body)


def test_any_other_error_at_a_start_is_a_failed_start() -> None:
    async def body() -> None:
        queue = dispatcher(RuntimeError("what?"), FakeWorker())
        assert await queue.answer(REQUEST) == GOOD

    run(body)


def test_workers_with_work_are_ended_at_once_when_the_server_stops() -> None:
    async def body() -> None:
        class Endless(FakeWorker):
            killed = False

            async def receive(self) -> Done | Idle:
                await asyncio.sleep(3600)
                raise AssertionError

            async def kill(self) -> None:
                self.killed = True

        worker = Endless()
        queue = dispatcher(worker)
        waiting = asyncio.ensure_future(queue.answer(REQUEST))
        while not worker.taken:
            await asyncio.sleep(0.01)
        await queue.close()
        assert worker.killed
        waiting.cancel()

    run(body)


# ---------------------------------------------------------------- changes of models


def test_a_load_starts_a_worker_and_an_unload_none() -> None:
    async def body() -> None:
        worker = FakeWorker()
        queue = dispatcher(worker)
        assert await queue.change(UNLOAD) == GOOD
        assert queue.status().starts == 0
        assert await queue.change(LOAD) == GOOD
        assert await queue.change(UNLOAD) == GOOD
        assert [message.change for message in worker.changes] == [LOAD, UNLOAD]
        assert queue.status().answered == 0, "only requests are counted"

    run(body)


def test_every_worker_gets_a_change_and_the_worst_answer_counts() -> None:
    async def body() -> None:
        bad = Answer(409, b"in use")
        workers = [FakeWorker(bad), FakeWorker()]
        queue = dispatcher(*workers, seats=2, keep_running=True)
        queue.open()
        assert await queue.change(LOAD) == bad
        assert [len(worker.changes) for worker in workers] == [1, 1]

    run(body)


def test_a_change_takes_no_room_from_requests() -> None:
    async def body() -> None:
        worker = FakeWorker(room=1)
        queue = dispatcher(worker)
        answers = await asyncio.gather(queue.answer(REQUEST), queue.change(LOAD), queue.change(LOAD))
        assert {answer.status for answer in answers} == {200}
        assert worker.most == 3

    run(body)


@pytest.mark.parametrize(
    ("start", "status"), [(FakeWorker(WorkerDiedError("gone")), 500), (StartError("no memory"), 503)]
)
def test_a_change_is_not_waited_for_in_vain(start: FakeWorker | Exception, status: int) -> None:
    async def body() -> None:
        queue = dispatcher(start, FakeWorker())
        answer = await queue.change(LOAD)
        assert answer.status == status
        assert (b"gone" if status == 500 else b"no memory") in answer.body
        assert await queue.answer(REQUEST) == GOOD

    run(body)


class HesitantWorker(FakeWorker):
    """A worker that says that it holds no model just before it hears of one to load."""

    def send(self, work: Work | Change) -> None:
        self.idle()
        super().send(work)


def test_a_worker_is_not_stopped_while_it_loads() -> None:
    async def body() -> None:
        worker = HesitantWorker()
        queue = dispatcher(worker)
        assert await queue.change(LOAD) == GOOD
        assert not worker.stopped
        worker.idle()
        while not worker.stopped:
            await asyncio.sleep(0.01)

    run(body)


def test_a_change_where_no_worker_starts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "RETRY_S", 60)

    async def body() -> None:
        queue = dispatcher()
        await queue.answer(REQUEST)
        assert (await queue.change(LOAD)).status == 503

    run(body)


def test_what_waited_longer_than_immich_would_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LONGEST_WAIT_S", 0.2)

    async def body() -> None:
        worker = SlowWorker(room=2)
        queue = dispatcher(worker)
        begun = [asyncio.ensure_future(queue.answer(REQUEST)) for _ in range(2)]
        await asyncio.sleep(0.01)
        late = await asyncio.gather(*(queue.answer(REQUEST) for _ in range(3)))
        assert [answer.status for answer in late] == [503] * 3
        assert b"Immich waits no longer" in late[0].body
        assert len(worker.taken) == 2
        while worker.has:
            worker.finish(0)
        assert await asyncio.gather(*begun) == [GOOD] * 2, "what was begun is finished"

    run(body)
