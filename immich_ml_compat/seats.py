"""The places of workers, and what is on its way to one: the requests and the changes of models."""

import asyncio
import time
from dataclasses import dataclass, field

from .link import Change
from .messages import Answer, PredictRequest
from .process import WorkerProcess
from .status import WorkerStatus
from .trace import request_id


@dataclass(eq=False)
class Job:
    """One request on its way to an answer."""

    id: int
    request: PredictRequest
    answer: asyncio.Future[Answer]
    until: float
    """By the loop's clock: when it need not be begun any more."""

    request_id: str = field(default_factory=request_id)
    """What logs call it."""

    queued_at: float = field(default_factory=time.monotonic)
    alone: bool = False
    """Whether it was in a worker that died, or ran out of memory: it is run again with nothing beside it."""

    @property
    def bytes(self) -> int:
        """What its photo or text takes."""
        return len(self.request.image or b"") + len(self.request.text or "")

    @property
    def is_search(self) -> bool:
        """Whether it is a text to embed: short work that a person waits for."""
        return self.request.image is None


@dataclass(eq=False)
class Order:
    """A change of models on its way to one worker."""

    message: Change
    answer: asyncio.Future[Answer]


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
    status: WorkerStatus | None = None
    """What the worker told of itself last."""

    jobs: dict[int, Job] = field(default_factory=dict)
    orders: dict[int, Order] = field(default_factory=dict)
    """Beside the jobs: they take no room, and nothing runs them again."""

    @property
    def empty(self) -> bool:
        """Whether a worker can be started here."""
        return self.process is None and not self.starting and not self.resting

    def has_room(self, job: Job, photos_wait: bool) -> bool:
        """Tell whether this seat's worker can take a job now.

        A search has a place beside the photos, and more only while no photo waits: neither kind starves the other.
        Photos that wait for a download take no place.
        """
        if self.process is None or any(other.alone for other in self.jobs.values()):
            return False
        if job.alone:
            return not self.jobs
        searches = sum(other.is_search for other in self.jobs.values())
        if job.is_search and (photos_wait or not searches):
            return not searches
        photos, room = len(self.jobs) - searches, self.process.room + (self.status.fetching if self.status else 0)
        return len(self.jobs) < room + 1 and (job.is_search or photos < room)
