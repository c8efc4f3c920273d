"""An inference worker: a process of its own that holds models and computes answers.

The front process starts it with one end of a socket pair. It ends when told to, or when the front has gone:
only an ended process gives all of its memory, and the GPU's, back.
"""

import argparse
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from .errors import failure
from .link import Alive, Done, Failed, Idle, LinkClosedError, Ready, Stop, Work, WorkerEnd
from .service import Service
from .settings import ConfigurationError, Settings, load_settings, set_up_logging

HEARTBEAT_S = 1.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class Worker:
    """Takes work from the line, answers it in threads, and watches the models' times."""

    def __init__(self, line: WorkerEnd, service: Service, settings: Settings) -> None:
        self._line = line
        self._service = service
        self._preload = settings.preload.models()
        self._room = max(1, settings.request_threads)
        self._poll_s = settings.model_ttl_poll_s
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._busy = 0

    def run(self) -> None:
        """Work until told to stop or the front has gone."""
        for target in (self._beat, self._watch):
            threading.Thread(target=target, daemon=True).start()
        with ThreadPoolExecutor(self._room, thread_name_prefix="answer") as pool, suppress(LinkClosedError):
            self._line.send(Ready(self._room))
            self._start(pool, self._service.preload, self._preload)
            while not isinstance(message := self._line.receive(), Stop):
                if isinstance(message, Work):
                    self._start(pool, self._do, message)
        self._ended.set()

    def _start(self, pool: ThreadPoolExecutor, task: Callable[[T], None], argument: T) -> None:
        with self._lock:
            self._busy += 1

        def run() -> None:
            try:
                task(argument)
            finally:
                with self._lock:
                    self._busy -= 1

        pool.submit(run)

    def _do(self, work: Work) -> None:
        try:
            answer = self._service.answer(work.request)
        except Exception:
            log.exception("A request failed in a way that nobody thought of")
            answer = failure(500, "Internal error; the server's log says where")
        with suppress(LinkClosedError):
            self._line.send(Done(work.id, answer))

    def _beat(self) -> None:
        with suppress(LinkClosedError):
            while not self._ended.wait(HEARTBEAT_S):
                self._line.send(Alive(self._service.models.loading_seconds()))

    def _watch(self) -> None:
        with suppress(LinkClosedError):
            while not self._ended.wait(self._poll_s):
                if not self._service.models.unload_expired() and not self._busy:
                    self._line.send(Idle())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker on the socket that the front passed on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--line", type=int, required=True, help="file descriptor of the line to the front")
    parser.add_argument("--device-id", type=int, required=True)
    options = parser.parse_args(arguments)
    # Ctrl-C reaches every process of a terminal; the front decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = WorkerEnd(socket.socket(fileno=options.line))
    try:
        settings = load_settings()
        set_up_logging(settings.log_level)
        service = Service(settings, options.device_id)
    except (ConfigurationError, OSError) as error:
        with suppress(LinkClosedError):
            line.send(Failed(str(error)))
        return 1
    Worker(line, service, settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
