"""Serving: the front process, with the listening socket, the HTTP server on it and the workers behind it.

It stays small: nothing it imports loads numpy, OpenCV or an inference engine.
"""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from .access import Access
from .body import BodyLimits
from .catalog import ModelType, Task
from .connection import PatientConnection
from .dispatch import Backend, Dispatcher
from .engine_choice import choose
from .environment import report_environment
from .errors import RequestError, failure
from .http_api import create_app
from .machine import this_machine
from .memory import resident_bytes
from .messages import Answer, ModelChange, PredictRequest
from .monitoring import Monitor
from .names import ModelNames, UnknownModelError
from .plan import plan_request
from .process import Patience, StartError, WorkerProcess
from .readiness import Readiness
from .room import BodyRoom
from .settings import ConfigurationError, Settings
from .status import ServerStatus
from .store import ModelStore
from .tls import server_context
from .trace import TRACE
from .tracing import Traced
from .ui_api import create_ui

log = logging.getLogger(__name__)

_MOST_FILES = 16_384
"""Files, that is connections, of the front: 16 kB of memory each."""

_CLOSING_S = 2
"""Seconds for closed requests to end."""


Backends = Callable[[Settings, ModelNames], Backend]
"""Makes what answers requests. Raises ConfigurationError."""


def serve(settings: Settings, backends: Backends | None = None) -> None:
    """Serve until stopped by SIGINT or SIGTERM, with workers of this machine where nothing else is to answer.

    Raises ConfigurationError for settings that cannot be used.
    """
    report_environment()
    names = ModelNames(ModelStore(settings.cache_folder), settings.model_aliases, settings.clip_model)
    for substitution in names.substitutions():
        log.info("Substitution in force: %s", substitution)
    check_preload(settings, names)
    context = server_context(settings)
    backend = (backends or local_workers)(settings, names)
    listener = listen(settings.host, settings.port)
    raise_file_limit()
    config = uvicorn.Config(
        guarded(build_app(settings, names, backend), settings),
        http=PatientConnection.with_patience(settings.header_timeout_s),
        ws="none",
        ssl_context_factory=None if context is None else lambda *_: context,
        log_config=None,
        log_level=max(settings.log_level, logging.WARNING),
        access_log=False,
        timeout_keep_alive=settings.http_keepalive_timeout_s,
        timeout_graceful_shutdown=settings.shutdown_timeout + _CLOSING_S,
        server_header=False,
    )
    host, port = listener.getsockname()[:2]
    scheme = "http" if context is None else "https"
    log.info("Serving on %s", f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    _Server(config, settings.shutdown_timeout).run(sockets=[listener])


class _Server(uvicorn.Server):
    """An HTTP server for which being asked to stop is no failure: its exit code is then 0."""

    def __init__(self, config: uvicorn.Config, shutdown_s: float) -> None:
        super().__init__(config)
        self._shutdown_s = shutdown_s
        self._closed = 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, finish what fits in the time, close the rest, and say how many there were of each."""
        running = len(self.server_state.tasks)
        closing = asyncio.get_running_loop().call_later(self._shutdown_s, self._close_rest)
        await super().shutdown(sockets)
        closing.cancel()
        log.info("Stopped; of the requests in flight %d were finished, %d closed", running - self._closed, self._closed)

    def _close_rest(self) -> None:
        """Leave those whom uvicorn would give a 500: to them it is a server that has gone."""
        for connection in list(self.server_state.connections):
            self._closed += 1
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM, at once on a second one; uvicorn's own would die of them in the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def local_workers(settings: Settings, names: ModelNames) -> Dispatcher:
    """Make the queue before workers of this machine. Raises ConfigurationError for a device that they cannot use."""
    check_device(settings)
    return Dispatcher(
        [device_id for _ in range(settings.workers) for device_id in settings.device_ids],
        partial(WorkerProcess.start, patience=Patience.of(settings)),
        keep_running=bool(settings.preload.models()),
        substitutions=names.substitutions(),
    )


def build_app(settings: Settings, names: ModelNames, backend: Backend) -> ASGIApp:
    """Put the HTTP face before what answers, and a monitor beside them."""
    preloaded = [names.key(*model) for model in settings.preload.models()]
    readiness = Readiness(ModelStore(settings.cache_folder), choose(settings, this_machine()), preloaded)
    limits = BodyLimits(settings.max_body_mb, settings.header_timeout_s)
    room = BodyRoom(settings.queue_mb)

    def status() -> ServerStatus:
        known = backend.status()
        return replace(known, uploads_waiting=room.waiting, upload_bytes=room.held, memory_bytes=resident_bytes())

    backend.observer = monitor = Monitor(status, readiness)

    async def answer(request: PredictRequest) -> Answer:
        # What is wrong with a request is said here: no worker has to be started for it.
        try:
            plan = plan_request(request, names)
        except RequestError as error:
            log.info("%d: %s", error.status, error.detail)
            return failure(error.status, error.detail)
        if trace := TRACE.get():
            trace.task = "+".join(plan.tasks)
        readiness.asked(plan.models)
        return await backend.answer(request)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        backend.open()
        yield
        await backend.close()

    app = create_app(answer, lambda: backend.trouble, lifespan, limits, room, timed=settings.ui)
    monitor.add_to(app)
    if settings.ui:
        change = partial(change_model, names, backend)
        app.include_router(create_ui(status, change, ModelStore(settings.cache_folder), limits))
    return Traced(app, monitor.metrics.finished)


async def change_model(names: ModelNames, backend: Backend, change: ModelChange) -> Answer:
    """Load a model, by a name that requests may use, or unload one."""
    try:
        if change.load:
            names.key(Task(change.task), ModelType(change.type), change.name)
    except UnknownModelError as error:
        return failure(422, str(error))
    return await backend.change(change)


def guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Put the access token, where there is one, before an application."""
    if settings.access_token is None:
        return app
    log.info("Only requests with the access token are answered")
    return Access(app, settings.access_token.get_secret_value())


def check_preload(settings: Settings, names: ModelNames) -> None:
    """Raise ConfigurationError for a model to preload that nothing can answer for."""
    for task, kind, name in settings.preload.models():
        try:
            names.key(task, kind, name)
        except UnknownModelError as error:
            raise ConfigurationError(
                f"MACHINE_LEARNING_PRELOAD: {error} Preload a name that is answered (`models list --all`), or none"
            ) from error


def check_device(settings: Settings) -> None:
    """Raise ConfigurationError for an engine, device or precision that was asked for and that a worker cannot use.

    Better now than at a request. What needs no library is told without a worker.
    """
    choice = choose(settings, this_machine())
    if settings.engine == settings.precision == "auto" and settings.device in ("auto", "cpu"):
        return
    if (choice.engine, choice.device) == ("onnxruntime", "cpu"):
        return

    async def start_and_stop() -> None:
        for device_id in settings.device_ids:
            await (await WorkerProcess.start(device_id, Patience())).stop()

    try:
        asyncio.run(start_and_stop())
    except StartError as error:
        raise ConfigurationError(str(error)) from error


def raise_file_limit() -> None:
    """Allow for as many connections as the system lets us have: often 1024 where it would give far more if asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # a system with a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. `[::]` takes IPv4 as well, and is all of IPv4 on a machine without IPv6.

    Raises ConfigurationError where the address is in use or not this machine's.
    """
    host = host.strip("[]")
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    dual = host == "::"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")  # a name that no host can have is a TypeError further down
        listener = socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=dual)
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"IMMICH_HOST={host} IMMICH_PORT={port}: cannot listen there ({cause}); choose another"
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that name their protocol; without, the second part of an
    # answer waits 40 ms for the client to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
