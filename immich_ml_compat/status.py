"""What the server is doing, as plain data: what a worker tells of itself, and the front of them all.

Times of day are seconds since 1970; nothing here is of a request's content.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model in a worker's memory."""

    task: str
    type: str
    name: str
    provider: str
    """What it really runs on, by the engine's own name for it."""

    bytes: int
    """The size of its files."""

    in_use: int
    """So many requests use it now."""

    stays: bool
    """Whether it was preloaded, so that it is never unloaded."""

    last_run: float | None = None
    """When a request, or the warming up, last ran it without an error."""


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """The last time that a model did not load or did not run."""

    task: str
    type: str
    name: str
    at: float
    detail: str


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker tells of itself, once a second."""

    pid: int
    device_id: int
    engine: str
    """What models run in and on, and why."""

    precision: str
    models: tuple[ModelStatus, ...]
    failures: tuple[ModelFailure, ...]
    """Of each model that ever failed in this worker, the last one."""

    memory_bytes: int
    """Resident, pages shared with other processes included."""

    vram_bytes: int | None
    """What is in use of the GPU's memory, by whomever; None where it is not known."""

    loading_s: float
    """For how long the slowest load that is running has been at it; 0 where none is."""

    busy: int
    """So many requests are being worked on."""

    fetching: int = 0
    """So many of them wait for models that are being downloaded, and leave their places to others meanwhile."""

    host: str = ""
    """The address of its machine, where that is not the front's."""


@dataclass(frozen=True, slots=True)
class WorkerEvents:
    """What happened in a worker since it last told of itself."""

    batches: tuple[tuple[int, int], ...] = ()
    """Runs of graphs: the items of a run, and how many runs had so many."""

    downloads: int = 0
    """Models that were downloaded."""

    failed_downloads: int = 0


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The queue and the workers, put together in the front process."""

    queue_photos: int
    queue_searches: int
    queue_bytes: int
    """What the requests that wait take, photos and texts."""

    in_hand: int
    """So many requests were handed to workers and are not answered yet."""

    workers: tuple[WorkerStatus, ...]
    """Of each worker that runs, what it told last."""

    starts: int
    """Workers started so far."""

    restarts: int
    """Workers that died or were killed for hanging, so far."""

    substitutions: tuple[str, ...]
    """Which names are answered by another model."""

    trouble: str | None
    """Why no worker can be started, while that is so."""

    started_at: float

    answered: int = 0
    """Answers that workers gave so far, errors included."""

    uploads_waiting: int = 0
    """Bodies of requests that are held back, unread, until there is room for them."""

    upload_bytes: int = 0
    """What the bodies that have room take, from their first byte until the answer."""

    memory_bytes: int = 0
    """What the front process holds, resident."""
