"""The queue of requests and the workers that answer them, in the front process.

Photos wait in one queue and searches, for which a person waits, in another. A worker is started when a request
finds none with room, takes as many photos as it has room for and a search beside them, and is told to stop when it
holds no model any more. A worker that dies or hangs is replaced, and
each request it had is run once more, alone: only one that ends a worker by itself gets an error. So is a request
for which memory ran out beside others.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from itertools import count
from typing import Protocol

from .errors import failure
from .link import Alive, Change, Done, Work
from .messages import Answer, ModelChange, PredictRequest
from .process import StartError, WorkerDiedError, WorkerProcess
from .seats import Job, Order, Seat
from .status import ServerStatus

log = logging.getLogger(__name__)

START_ATTEMPTS = 3
"""So many starts in a row must fail before the server says that it cannot work."""

RETRY_S = 10.0
"""Seconds between attempts to start a worker once it has said so."""

MOST_DEATHS, DEATHS_TOLD_S = 6, 60.0
"""So many workers in a row must die, with no answer between them, before the server says so, for so many seconds."""

LONGEST_WAIT_S = 300.0
"""Seconds that a request waits for a worker: for longer Immich does not wait for an answer's first byte."""

_CLOCK_S = 0.05  # timers may fire a little early


class Observer(Protocol):
    """Is told what happens."""

    def waited(self, kind: str, seconds: float) -> None:
        """A worker has taken a `photo` or a `search` that waited so long."""

    def heard(self, message: Done | Alive) -> None:
        """A worker has answered, or told of itself."""


class Backend(Protocol):
    """What answers requests behind the front: a `Dispatcher` with workers of this machine, or of others."""

    observer: Observer | None

    @property
    def trouble(self) -> str | None:
        """Why nothing can be answered, while that is so."""

    def open(self) -> None:
        """Begin, in the event loop that it will live in."""

    async def close(self) -> None:
        """End, without waiting for what nobody waits for."""

    async def answer(self, request: PredictRequest) -> Answer:
        """Answer a request in which nothing was found wrong."""

    async def change(self, change: ModelChange) -> Answer:
        """Load or unload a model."""

    def status(self) -> ServerStatus:
        """Say what is waiting, what is being worked on, and how the workers are."""


class Dispatcher:
    """Hands requests to workers. Lives in one event loop."""

    def __init__(
        self,
        device_ids: Sequence[int],
        start: Callable[[int], Awaitable[WorkerProcess]],
        *,
        keep_running: bool = False,
        substitutions: Sequence[str] = (),
    ) -> None:
        """`device_ids` has one entry per worker; with `keep_running` workers start at once and are always replaced.

        `substitutions` are told with the status.
        """
        self._seats = [Seat(device_id) for device_id in device_ids]
        self._start = start
        self._keep_running = keep_running
        self._photos: deque[Job] = deque()
        self._searches: deque[Job] = deque()
        self._ids = count()
        self._stopping = False
        self._substitutions = tuple(substitutions)
        self._started_at = time.time()
        self._starts = self._restarts = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.observer: Observer | None = None
        """Is told what happens, where there is one."""

        self._no_start: str | None = None
        """Why no worker can be started, while that is so."""

        self._deaths = 0
        """Since the last answer."""

        self._last_death = 0.0, ""
        """When it was, and its cause."""

    def open(self) -> None:
        """Start the workers that are to run from the beginning."""
        self._fill()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be answered, while that is so. Requests are still tried where workers start, only to die."""
        at, cause = self._last_death
        if self._no_start is None and self._deaths >= MOST_DEATHS and time.monotonic() - at < DEATHS_TOLD_S:
            return f"Inference workers die of all that they are given: {cause}"
        return self._no_start

    async def answer(self, request: PredictRequest) -> Answer:
        """Queue a request and wait for its answer."""
        if self._no_start is not None:
            return failure(503, f"No inference worker can be started: {self._no_start}")
        loop = asyncio.get_running_loop()
        job = Job(next(self._ids), request, loop.create_future(), loop.time() + LONGEST_WAIT_S)
        looking = loop.call_at(job.until, self._pump)
        queue = self._queue(job)
        queue.append(job)
        self._pump()
        try:
            return await job.answer
        finally:
            looking.cancel()
            if job in queue:  # whoever asked has gone
                queue.remove(job)

    def status(self) -> ServerStatus:
        """Say what is waiting, what is being worked on, and how the workers are."""
        waiting = [*self._photos, *self._searches]
        return ServerStatus(
            queue_photos=len(self._photos),
            queue_searches=len(self._searches),
            queue_bytes=sum(job.bytes for job in waiting),
            in_hand=sum(len(seat.jobs) for seat in self._seats),
            workers=tuple(seat.status for seat in self._seats if seat.process and seat.status),
            answered=sum(seat.answered for seat in self._seats),
            starts=self._starts,
            restarts=self._restarts,
            substitutions=self._substitutions,
            trouble=self.trouble,
            started_at=self._started_at,
        )

    async def change(self, change: ModelChange) -> Answer:
        """Change the models of every worker, and give the answer of the one that fared worst.

        A load starts a worker where none runs; without one nothing is to be unloaded.
        """
        if self._no_start is not None:
            return failure(503, f"No inference worker can be started: {self._no_start}")
        seats = [seat for seat in self._seats if seat.process or seat.starting]
        if not seats and change.load:
            seats = [seat for seat in self._seats if seat.empty][:1]
        orders = [self._order(seat, change) for seat in seats]
        answers = await asyncio.gather(*(order.answer for order in orders))
        return max(answers, key=lambda answer: answer.status, default=Answer(200, b"{}"))

    def _order(self, seat: Seat, change: ModelChange) -> Order:
        order = Order(Change(next(self._ids), change), asyncio.get_running_loop().create_future())
        seat.orders[order.message.id] = order
        if seat.process is not None:
            seat.process.send(order.message)
        elif seat.empty:
            self._occupy(seat)
        return order

    def _give_up_orders(self, seat: Seat, answer: Answer) -> None:
        for order in seat.orders.values():
            self._settle(order, answer)
        seat.orders.clear()

    async def close(self) -> None:
        """Let the workers finish what they have and end them."""
        self._stopping = True
        # Nobody waits any more for what is still being worked on.
        processes = [(seat.process, seat.jobs or seat.orders) for seat in self._seats if seat.process]
        await asyncio.gather(*(process.kill() if work else process.stop() for process, work in processes))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _pump(self) -> None:
        """Give waiting requests, each kind in its order, to workers with room; start a worker where there is none."""
        for queue in sorted((self._searches, self._photos), key=lambda queue: not (queue and queue[0].alone)):
            while queue and self._place(queue[0]):
                queue.popleft()
            if queue and queue[0].alone:
                break  # whatever is placed meanwhile keeps workers from being free for it
        if (self._searches or self._photos) and not any(seat.starting for seat in self._seats):
            empty = next((seat for seat in self._seats if seat.empty), None)
            if empty is not None:
                self._occupy(empty)

    def _place(self, job: Job) -> bool:
        """Give a job to the worker that has most room; tell whether it need not wait any longer."""
        if job.answer.done():
            return True
        if asyncio.get_running_loop().time() + _CLOCK_S >= job.until:
            log.warning("A request waited for %g s and was not begun any more", LONGEST_WAIT_S)
            self._settle(job, failure(503, f"No worker had room within {LONGEST_WAIT_S:g} s; Immich waits no longer"))
            return True
        seats = (seat for seat in self._seats if seat.has_room(job, bool(self._photos)))
        seat = min(seats, key=lambda seat: len(seat.jobs), default=None)
        if seat is None or seat.process is None:
            return False
        seat.jobs[job.id] = job
        seat.process.send(Work(job.id, job.request, job.request_id))
        if self.observer is not None and not job.alone:
            self.observer.waited("search" if job.is_search else "photo", time.monotonic() - job.queued_at)
        return True

    def _queue(self, job: Job) -> deque[Job]:
        return self._searches if job.is_search else self._photos

    def _fill(self) -> None:
        if self._keep_running and not self._stopping:
            for seat in self._seats:
                if seat.empty:
                    self._occupy(seat)

    def _occupy(self, seat: Seat) -> None:
        seat.starting = True
        task = asyncio.get_running_loop().create_task(self._run(seat), context=Context())  # no request's own
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, seat: Seat) -> None:
        """Start a worker, pass its answers on, and see to what it leaves behind."""
        try:
            process = await self._start(seat.device_id)
        except Exception as error:
            if not isinstance(error, StartError):
                log.exception("Starting an inference worker failed in a way that nobody thought of")
            seat.starting = False
            self._note_failed_start(seat, str(error) or type(error).__name__)
            return None
        seat.process, seat.starting, seat.status, self._no_start = process, False, None, None
        self._starts += 1
        answered = seat.answered
        for order in seat.orders.values():
            process.send(order.message)
        try:
            self._pump()
            await self._collect(seat, process)
        except WorkerDiedError as error:
            useless = seat.answered == answered and not seat.jobs and not seat.orders
            self._leave(seat, process, str(error))
            if useless:  # it died of its own: of a model that it preloaded, say
                return self._note_failed_start(seat, str(error))
        except Exception as error:
            log.exception("Inference worker %d was not understood", process.pid)
            await process.kill()
            self._leave(seat, process, f"{type(error).__name__} in the front process")
        if not self._stopping:
            self._fill()
            self._pump()
        return None

    def _leave(self, seat: Seat, process: WorkerProcess, cause: str) -> None:
        """Free the seat of a worker that died, and see to its requests."""
        seat.process = None
        if not self._stopping:
            self._restarts += 1
            self._deaths, self._last_death = self._deaths + 1, (time.monotonic(), cause)
            log.error("Inference worker %d died: %s", process.pid, cause)
        self._give_up_orders(seat, failure(500, f"The inference worker died meanwhile: {cause}"))
        self._run_again(seat, cause)

    async def _collect(self, seat: Seat, process: WorkerProcess) -> None:
        while True:
            message = await process.receive()
            if isinstance(message, Done) and (order := seat.orders.pop(message.id, None)):
                self._settle(order, message.answer)
                continue
            if self.observer is not None and isinstance(message, Done | Alive):
                self.observer.heard(message)
            if isinstance(message, Done):
                seat.answered += 1
                seat.failed_starts = self._deaths = 0
                self._take_answer(seat.jobs.pop(message.id), message.answer)
                del message  # an answer need not be held until the next one comes
                self._pump()
            elif isinstance(message, Alive):
                seat.status = message.status
                self._pump()  # what waits for a download has made room
            elif not seat.jobs and not seat.orders:
                seat.process = None
                await process.stop()
                return

    def _take_answer(self, job: Job, answer: Answer) -> None:
        if answer.out_of_memory and not job.alone and not job.answer.done():
            log.warning("A request ran out of memory beside others and is run again alone")
            job.alone = True
            self._queue(job).appendleft(job)
        else:
            self._settle(job, answer)

    def _run_again(self, seat: Seat, cause: str) -> None:
        for job in reversed(seat.jobs.values()):
            if job.answer.done():
                continue
            if job.alone:
                detail = f"The inference worker died of this request, twice: {cause}. It is not tried again."
                self._settle(job, failure(500, detail))
            else:
                job.alone = True
                self._queue(job).appendleft(job)
        seat.jobs.clear()

    def _note_failed_start(self, seat: Seat, cause: str) -> None:
        self._give_up_orders(seat, failure(503, f"No inference worker can be started: {cause}"))
        if self._stopping:
            return
        seat.failed_starts += 1
        log.error("Starting an inference worker failed (%d in a row): %s", seat.failed_starts, cause)
        if seat.failed_starts < START_ATTEMPTS:
            self._fill()
            self._pump()
            return
        seat.resting = True
        asyncio.get_running_loop().call_later(RETRY_S, self._try_again, seat)
        if any(other.process or not other.resting for other in self._seats):
            self._pump()
            return  # there are others to do the work
        self._no_start = cause
        for queue in (self._searches, self._photos):
            while queue:
                self._settle(queue.popleft(), failure(503, f"No inference worker can be started: {cause}"))

    def _try_again(self, seat: Seat) -> None:
        seat.resting = False
        if not self._stopping and seat.empty and (self._no_start is not None or self._keep_running):
            self._occupy(seat)
        self._pump()

    @staticmethod
    def _settle(job: Job | Order, answer: Answer) -> None:
        if not job.answer.done():  # whoever asked may have gone
            job.answer.set_result(answer)
