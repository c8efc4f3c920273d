"""Many machines behind one address, on Ray Serve: the front of one cluster, and the replicas that it asks.

    front (HTTP, plan) → the Serve application of each kind of work → a replica → its worker, a process of its own

A replica is what the front is on a single machine, less HTTP: a queue and one worker behind it, which is replaced where
it dies. What is new is a replica or a whole node that is lost: the front asks another one. The applications are in
deploy/ray/serve.yaml; `immich-ml-compat serve --ray` is the front. Only this module and deploy/ray know Ray.
"""

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from . import serving
from .dispatch import LONGEST_WAIT_S, Dispatcher, Observer
from .errors import failure
from .link import Alive, Done
from .logs import set_up_logging
from .messages import Answer, ModelChange, PredictRequest
from .names import ModelNames
from .parts import MODELS, Work, merge, split
from .process import Patience, WorkerProcess
from .settings import PREFIX, ConfigurationError, Settings, load_settings
from .status import ServerStatus
from .trace import TRACE, Trace, request_id

log = logging.getLogger(__name__)

DEPLOYMENT = "replicas"
"""The deployment of every application."""

NAMESPACE, BOARD = "immich-ml-compat", "board"

REPORT_S = 1.0
"""Seconds between what a replica tells of itself."""

SILENCE_S = 10.0
"""A replica that has told nothing for so many seconds is gone, as far as `/metrics` and `/health` say."""

PAUSES_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Before each time that a request is given to a replica: another one, where that can be."""

_START_S = 60.0
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica tells of itself."""

    replica: str
    work: Work
    host: str
    status: ServerStatus
    heard: tuple[Alive, ...]
    """What its worker told since its last report."""


# ---------------------------------------------------------------- on the nodes


class Replica:
    """One worker with its queue, for one kind of work. Lives in an actor of Ray Serve, on any node."""

    def __init__(self, work: str) -> None:
        """Raises ConfigurationError for settings, the node's environment, that cannot be used."""
        self._work = Work(work)
        _forget_other_preloads(self._work)
        settings = load_settings()
        set_up_logging(settings.log_level, settings.log_format)
        start = partial(WorkerProcess.start, patience=Patience.of(settings))
        # Ray shows a replica its share of the GPUs and no other: the first one is its own.
        self._dispatcher = Dispatcher([0], start, keep_running=bool(settings.preload.models()))
        self._dispatcher.observer = self
        self._heard: deque[Alive] = deque(maxlen=_REMEMBERED)
        self._dispatcher.open()
        self._reporting = asyncio.ensure_future(self._keep_reporting())

    async def answer(self, request: PredictRequest, request_id: str) -> Answer:
        """Answer a request, or a part of one."""
        TRACE.set(Trace(request_id))
        return await self._dispatcher.answer(request)

    def check_health(self) -> None:
        """Raise where the worker cannot be started or dies of everything: Serve replaces the replica, here or there."""
        if self._dispatcher.trouble is not None:
            raise RuntimeError(self._dispatcher.trouble)

    def waited(self, kind: str, seconds: float) -> None:
        """Leave it to the front, which knows how long a request waited in all."""

    def heard(self, message: Done | Alive) -> None:
        """Keep what the worker tells of itself for the next report."""
        if isinstance(message, Alive):
            self._heard.append(message)

    async def _keep_reporting(self) -> None:
        """Tell the front's board, where there is one, for as long as this replica lives."""
        replica, host = serve.get_replica_context().replica_tag, ray.util.get_node_ip_address()
        while True:
            try:
                board = await asyncio.to_thread(ray.get_actor, BOARD, NAMESPACE)
                while True:
                    heard = tuple(self._heard)
                    self._heard.clear()
                    await board.tell.remote(Report(replica, self._work, host, self._dispatcher.status(), heard))
                    await asyncio.sleep(REPORT_S)
            except (RayError, ValueError):  # there is no front, or it was started anew
                await asyncio.sleep(REPORT_S)


def _forget_other_preloads(work: Work) -> None:
    """Leave only those models to be preloaded that do this kind of work."""
    task, types = MODELS[work]
    own = {f"{PREFIX}PRELOAD__{task.replace('-', '_')}__{kind}".upper() for kind in types}
    for name in list(os.environ):
        if name.upper().startswith(f"{PREFIX}PRELOAD__") and name.upper() not in own:
            del os.environ[name]


def application(arguments: dict[str, str]) -> Any:
    """Build the Serve application of one kind of work, `{"work": "ocr"}` in the Serve config."""
    work = Work(arguments["work"])
    return serve.deployment(Replica, name=DEPLOYMENT).bind(work.value)


class Board:
    """What replicas told, until the front takes it. Lives in an actor beside the front."""

    def __init__(self) -> None:
        self._reports: deque[Report] = deque(maxlen=_REMEMBERED)

    def tell(self, report: Report) -> None:
        """Put a report up."""
        self._reports.append(report)

    def take(self) -> list[Report]:
        """Take all reports down."""
        reports = list(self._reports)
        self._reports.clear()
        return reports


# ---------------------------------------------------------------- the front


class Cluster:
    """What answers for the front: the replicas of all nodes. Lives in one event loop."""

    def __init__(self, settings: Settings, names: ModelNames) -> None:
        """Connect to the applications. Raises ConfigurationError where they are not deployed."""
        self.observer: Observer | None = None
        self._substitutions = tuple(names.substitutions())
        self._handles = {work: _handle(work) for work in Work}
        self._ask: dict[Work, Any] = {}
        self._board = _board()
        self._reports: dict[str, tuple[float, Report]] = {}
        """Of each replica the last one, and when it came."""

        self._gone: Counter[str] = Counter()
        """What replicas that are gone had counted."""

        self._asked: Counter[Work] = Counter()
        """Parts of requests that have no answer yet."""

        self._asked_bytes = 0
        self._lost: str | None = None
        self._started_at = time.time()
        self._watching: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to look at the board, and let requests through."""
        # Where deploy/ray/start has set it so, Ray finds replicas in this event loop, and only here can it be told so.
        self._ask = {work: handle.answer for work, handle in self._handles.items()}
        self._watching = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Look no more; the replicas stay."""
        if self._watching is not None:
            self._watching.cancel()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be answered: the cluster is lost, or no replica that is there can work."""
        troubles = [report.status.trouble for _, report in self._reports.values()]
        return self._lost or (troubles[0] if troubles and all(troubles) else None)

    async def answer(self, request: PredictRequest) -> Answer:
        """Have each part of a request answered by a replica for it, and put the answers together."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                answers = await asyncio.gather(*(self._answer(*part) for part in split(request).items()))
        except TimeoutError:
            return failure(503, f"No replica answered within {LONGEST_WAIT_S:g} s; Immich waits no longer")
        answer = merge(answers)
        if self.observer is not None:
            worked = max((sum(stages.values()) for stages in answer.stages.values()), default=0.0)
            self.observer.waited("search" if request.image is None else "photo", time.monotonic() - began - worked)
            self.observer.heard(Done(0, answer))
        return answer

    async def _answer(self, work: Work, request: PredictRequest) -> Answer:
        size = len(request.image or b"") + len(request.text or "")
        self._asked[work] += 1
        self._asked_bytes += size
        try:
            return await self._insist(work, request)
        finally:
            self._asked[work] -= 1
            self._asked_bytes -= size

    async def _insist(self, work: Work, request: PredictRequest) -> Answer:
        """Ask one replica after the other until one answers. A request is computed anew where a node was lost."""
        answer = failure(503, f"No replica for {work} was asked")
        for pause in PAUSES_S:
            await asyncio.sleep(pause)
            response = self._ask[work].remote(request, request_id())
            try:
                answer = await response
            except asyncio.CancelledError:  # whoever asked has gone
                response.cancel()
                raise
            except (RayError, RayServeException) as error:
                answer = failure(503, f"No replica for {work} could answer: {_line(error)}")
            if answer.status != 503:
                return answer
            log.warning("Asking another replica: %s", answer.body.decode())
        return answer

    async def change(self, change: ModelChange) -> Answer:
        """Refuse: replicas come and go, and load what they are asked for."""
        return failure(501, "On a cluster models are loaded by requests and PRELOAD, and unloaded after their time")

    def status(self) -> ServerStatus:
        """Say what is waiting, what is being worked on, and how the workers on all nodes are."""
        reports = [report for _, report in self._reports.values()]
        in_hand = Counter[Work]()
        for report in reports:
            in_hand[report.work] += report.status.in_hand
        waiting = {work: max(0, asked - in_hand[work]) for work, asked in self._asked.items()}
        asked = sum(self._asked.values())
        counts = self._gone + _counts(reports)
        return ServerStatus(
            queue_photos=sum(waiting.values()) - waiting.get(Work.CLIP_TEXT, 0),
            queue_searches=waiting.get(Work.CLIP_TEXT, 0),
            queue_bytes=self._asked_bytes * sum(waiting.values()) // max(1, asked),
            in_hand=asked - sum(waiting.values()),
            workers=tuple(replace(worker, host=report.host) for report in reports for worker in report.status.workers),
            answered=counts["answered"],
            starts=counts["starts"],
            restarts=counts["restarts"],
            substitutions=self._substitutions,
            trouble=self.trouble,
            started_at=self._started_at,
        )

    async def _watch(self) -> None:
        while True:
            try:
                self._read(await self._board.take.remote())
                self._lost = None
            except RayError as error:
                self._lost = f"The Ray cluster does not answer: {_line(error)}"
                with suppress(RayError):
                    self._board = _board()
            await asyncio.sleep(REPORT_S)

    def _read(self, reports: list[Report]) -> None:
        now = time.monotonic()
        for report in reports:
            self._reports[report.replica] = now, report
            for message in report.heard:
                if self.observer is not None:
                    self.observer.heard(message)
        for replica, (at, report) in list(self._reports.items()):
            if now - at > SILENCE_S:
                del self._reports[replica]
                self._gone += _counts([report])


def serve_on_ray(settings: Settings) -> None:
    """Serve until stopped, as `serving.serve` does, but with the replicas of a Ray cluster behind the front.

    The cluster is that of RAY_ADDRESS, or the one that this machine belongs to. Raises ConfigurationError.
    """
    try:
        ray.init("auto", namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RayError) as error:
        raise ConfigurationError(
            f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}: no Ray cluster there ({_line(error)}); "
            "run `ray start` on this machine first"
        ) from error
    serving.serve(settings, Cluster)


def _handle(work: Work) -> Any:
    """Return the way to ask the replicas for some kind of work. Raises ConfigurationError where there is none."""
    until = time.monotonic() + _START_S
    while True:
        try:
            return serve.get_deployment_handle(DEPLOYMENT, work.value)
        except (KeyError, RayError, RayServeException) as error:
            if time.monotonic() > until:
                raise ConfigurationError(
                    f"The Serve application {work} is not there ({_line(error)}); "
                    "deploy it first: `serve deploy deploy/ray/serve.yaml`"
                ) from error
        time.sleep(1)


def _board() -> Any:
    """Return the board, put up on the front's own node where there is none."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": BOARD, "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0}
    return ray.remote(Board).options(**options, scheduling_strategy=here).remote()


def _counts(reports: Iterable[Report]) -> Counter[str]:
    counts = Counter[str]()
    for report in reports:
        status = report.status
        counts.update(answered=status.answered, starts=status.starts, restarts=status.restarts)
    return counts


def _line(error: Exception) -> str:
    """Return what an error says first: Ray's have many lines."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
