"""Serving: the front process, with the listening socket, the HTTP server on it and the workers behind it.

It stays small: nothing it imports loads numpy, OpenCV or an inference engine.
"""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import uvicorn

from .application import build_app
from .connection import PatientConnection
from .dispatch import Backend, Dispatcher
from .engine_choice import choose
from .environment import report_environment
from .errors import RequestError
from .machine import this_machine
from .memory import keep_freed
from .mt_photos import Requests
from .names import ModelNames, UnknownModelError
from .plan import parse_plan
from .process import Patience, StartError, WorkerProcess
from .settings import ConfigurationError, Settings
from .store import ModelStore
from .tls import server_context

log = logging.getLogger(__name__)

_MOST_FILES = 16_384
"""Files, that is connections, of the front: 16 kB of memory each."""

_KEPT_BYTES = 16_000_000
"""What the front keeps of memory that requests have freed: more than what a preview takes on its way through."""

_CLOSING_S = 2
"""Seconds for closed requests to end."""


Backends = Callable[[Settings, ModelNames], Backend]
"""Makes what answers requests. Raises ConfigurationError."""


def serve(settings: Settings, backends: Backends | None = None) -> None:
    """Serve until stopped by SIGINT or SIGTERM, with workers of this machine where nothing else is to answer.

    Raises ConfigurationError for settings that cannot be used.
    """
    report_environment()
    keep_freed(_KEPT_BYTES)
    names = ModelNames(ModelStore(settings.cache_folder), settings.model_aliases, settings.clip_model)
    for substitution in names.substitutions():
        log.info("Substitution in force: %s", substitution)
    check_preload(settings, names)
    check_mt_photos(settings, names)
    context = server_context(settings)
    backend = (backends or local_workers)(settings, names)
    listeners = open_listeners(settings)
    raise_file_limit()
    config = uvicorn.Config(
        build_app(settings, names, backend, *(listener.getsockname()[1] for listener in listeners[1:])),
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
    for listener, what in zip(listeners, ("Serving", "Serving MT Photos"), strict=False):
        host, port = listener.getsockname()[:2]
        scheme = "http" if context is None else "https"
        log.info("%s on %s", what, f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    _Server(config, settings.shutdown_timeout).run(sockets=listeners)


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


def check_preload(settings: Settings, names: ModelNames) -> None:
    """Raise ConfigurationError for a model to preload that nothing can answer for."""
    for task, kind, name in settings.preload.models():
        try:
            names.key(task, kind, name)
        except UnknownModelError as error:
            raise ConfigurationError(
                f"MACHINE_LEARNING_PRELOAD: {error} Preload a name that is answered (`models list --all`), or none"
            ) from error


def check_mt_photos(settings: Settings, names: ModelNames) -> None:
    """Raise ConfigurationError for a model of MT Photos' API, or the gateway's, that nothing can answer for."""
    if not settings.mt_photos and not settings.legacy_ocr:
        return
    for variable, entries in Requests(settings).by_variable():
        try:
            parse_plan(entries, names)
        except RequestError as error:
            raise ConfigurationError(f"{variable}: {error.detail} Name one that is (`models list --all`)") from error
    if settings.mt_photos and settings.mt_photos_api_key is None:
        log.info("MT Photos is answered on this machine alone: API_AUTH_KEY is not set")


def local_workers(settings: Settings, names: ModelNames) -> Dispatcher:
    """Make the queue before workers of this machine. Raises ConfigurationError for a device that they cannot use."""
    check_device(settings)
    return Dispatcher(
        [device_id for _ in range(settings.workers) for device_id in settings.device_ids],
        partial(WorkerProcess.start, patience=Patience.of(settings)),
        keep_running=bool(settings.preload.models()),
        substitutions=names.substitutions(),
    )


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


def open_listeners(settings: Settings) -> list[socket.socket]:
    """Open the listening socket, and MT Photos' own where it has one. Raises ConfigurationError as `listen` does."""
    ports = {"IMMICH_PORT": settings.port}
    if settings.mt_photos and settings.mt_photos_port != settings.port:
        ports["MACHINE_LEARNING_MT_PHOTOS_PORT"] = settings.mt_photos_port
    return [listen(settings.host, port, variable) for variable, port in ports.items()]


def listen(host: str, port: int, variable: str = "IMMICH_PORT") -> socket.socket:
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
            f"IMMICH_HOST={host} {variable}={port}: cannot listen there ({cause}); choose another"
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that name their protocol; without, the second part of an
    # answer waits 40 ms for the client to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
