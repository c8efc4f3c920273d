"""The queue of requests and the workers that answer them, in the front process.

Photos wait in one queue and searches, for which a person waits, in another. A worker is started when a request
finds none with room, takes as many photos as it has room for and a search beside them, and is told to stop when it
holds no model any more. A worker that dies or hangs is replaced, and
each request it had is run once more, alone: only one that ends a worker by itself gets an error. So is a request
for which memory ran out beside others.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from .errors import failure
from .link import Done, Work
from .messages import Answer, PredictRequest
from .process import StartError, WorkerDiedError, WorkerProcess

log = logging.getLogger(__name__)

START_ATTEMPTS = 3
"""So many starts in a row must fail before the server says that it cannot work."""

RETRY_S = 10.0
"""Seconds between attempts to start a worker once it has said so."""


LONGEST_WAIT_S = 300.0
"""Seconds that a request waits for a worker: for longer Immich does not wait for an answer's first byte."""


_CLOCK_S = 0.05  # timers may fire a little early


@dataclass(eq=False)
class Job:
    """One request on its way to an answer."""

    id: int
    request: PredictRequest
    answer: asyncio.Future[Answer]
    until: float
    """By the loop's clock: when it need not be begun any more."""

    alone: bool = False
    """Whether it was in a worker that died, or ran out of memory: it is run again with nothing beside it."""

    @property
    def is_search(self) -> bool:
        """Whether it is a text to embed: short work that a person waits for."""
        return self.request.image is None


@dataclass(eq=False)
class Seat:
    """The place of one worker: the device it is for, the process there now, and what it is working on."""

    device_id: int
    process: WorkerProcess | None = None
    starting: bool = False
    resting: bool = False
    """Whether starting failed so often that the next attempt waits."""

    failed_starts: int = 0
    answered: int = 0
    jobs: dict[int, Job] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether a worker can be started here."""
        return self.process is None and not self.starting and not self.resting

    def has_room(self, job: Job, photos_wait: bool) -> bool:
        """Tell whether this seat's worker can take a job now.

        A search has a place beside the photos, and more only while no photo waits: neither kind starves the other.
        """
        if self.process is None or any(other.alone for other in self.jobs.values()):
            return False
        if job.alone:
            return not self.jobs
        searches = sum(other.is_search for other in self.jobs.values())
        if job.is_search and photos_wait and searches:
            return False
        photos = len(self.jobs) - searches
        return len(self.jobs) < self.process.room + 1 and (job.is_search or photos < self.process.room)


class Dispatcher:
    """Hands requests to workers. Lives in one event loop."""

    def __init__(
        self,
        device_ids: Sequence[int],
        start: Callable[[int], Awaitable[WorkerProcess]],
        *,
        keep_running: bool = False,
    ) -> None:
        """`device_ids` has one entry per worker; with `keep_running` workers start at once and are always replaced."""
        self._seats = [Seat(device_id) for device_id in device_ids]
        self._start = start
        self._keep_running = keep_running
        self._photos: deque[Job] = deque()
        self._searches: deque[Job] = deque()
        self._ids = count()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.trouble: str | None = None
        """Why no worker can be started, while that is so."""

    def open(self) -> None:
        """Start the workers that are to run from the beginning."""
        self._fill()

    async def answer(self, request: PredictRequest) -> Answer:
        """Queue a request and wait for its answer."""
        if self.trouble is not None:
            return failure(503, f"No inference worker can be started: {self.trouble}")
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

    async def close(self) -> None:
        """Let the workers finish what they have and end them."""
        self._stopping = True
        # Nobody waits any more for what is still being worked on.
        processes = [(seat.process, seat.jobs) for seat in self._seats if seat.process]
        await asyncio.gather(*(process.kill() if jobs else process.stop() for process, jobs in processes))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _pump(self) -> None:
        """Give waiting requests, each kind in its order, to workers with room; start a worker where there is none."""
        for queue in (self._searches, self._photos):
            while queue and self._place(queue[0]):
                queue.popleft()
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
        seat.process.send(Work(job.id, job.request))
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
        task = asyncio.get_running_loop().create_task(self._run(seat))
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
        seat.process, seat.starting, self.trouble = process, False, None
        answered = seat.answered
        try:
            self._pump()
            await self._collect(seat, process)
        except WorkerDiedError as error:
            useless = seat.answered == answered and not seat.jobs
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
            log.error("Inference worker %d died: %s", process.pid, cause)
        self._run_again(seat, cause)

    async def _collect(self, seat: Seat, process: WorkerProcess) -> None:
        while True:
            message = await process.receive()
            if isinstance(message, Done):
                seat.answered += 1
                seat.failed_starts = 0
                self._take_answer(seat.jobs.pop(message.id), message.answer)
                del message  # an answer need not be held until the next one comes
                self._pump()
            elif not seat.jobs:
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
        self.trouble = cause
        for queue in (self._searches, self._photos):
            while queue:
                self._settle(queue.popleft(), failure(503, f"No inference worker can be started: {cause}"))

    def _try_again(self, seat: Seat) -> None:
        seat.resting = False
        if not self._stopping and seat.empty and (self.trouble is not None or self._keep_running):
            self._occupy(seat)
        self._pump()

    @staticmethod
    def _settle(job: Job, answer: Answer) -> None:
        if not job.answer.done():  # whoever asked may have gone
            job.answer.set_result(answer)
