"""An inference worker: a process of its own that holds models and computes answers.

The front process starts it with one end of a socket pair. It ends when told to, or when the front has gone:
only an ended process gives all of its memory, and the GPU's, back.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import cv2

from .errors import failure
from .link import Alive, Change, Done, Failed, Idle, LinkClosedError, Ready, Stop, Work, WorkerEnd
from .logs import set_up_logging
from .messages import Answer, PredictRequest
from .service import MOST_FETCHING, Service
from .settings import ConfigurationError, Settings, load_settings
from .timing import recording
from .trace import TRACE, Trace

HEARTBEAT_S = 1.0

LINGER_S = 40.0
"""Seconds without work before a worker without models ends: longer than it remembers that a download failed."""

RELEASE_EVERY_S = 60.0
"""Seconds after which a worker that never rests gives back what it does not need: what large photos took, above all."""

REST_S = 3.0
"""Seconds without use after which what a model's runs took may go back, whatever else is busy: of two jobs one after
the other, the second does not hold what the first one needed. It goes when the models' times are looked at next."""

PRELOAD_PAUSE_S, PRELOAD_LONGEST_PAUSE_S = 30.0, 600.0

log = logging.getLogger(__name__)


class Worker:
    """Takes work from the line, answers it in threads, and watches the models' times."""

    def __init__(self, line: WorkerEnd, service: Service, settings: Settings) -> None:
        self._line = line
        self._service = service
        self._preload = settings.preload.models()
        self._linger_s = min(settings.model_ttl, LINGER_S) if settings.model_ttl > 0 else LINGER_S
        self._room = service.room
        self._poll_s = settings.model_ttl_poll_s
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._busy = 0
        self._last_busy = time.monotonic()

    def run(self) -> None:
        """Work until told to stop or the front has gone."""
        # One for a search, and those that wait for a download.
        with ThreadPoolExecutor(self._room + 1 + MOST_FETCHING, thread_name_prefix="answer") as pool:
            try:
                self._take_work(pool)
            except LinkClosedError:
                os._exit(0)  # nobody is left to answer: what runs here would only keep its memory
        self._ended.set()

    def _take_work(self, pool: ThreadPoolExecutor) -> None:
        self._line.send(Ready(self._room))
        for target in (self._beat, self._watch, self._keep_preloading):
            threading.Thread(target=target, daemon=True).start()
        while not isinstance(message := self._line.receive(), Stop):
            if isinstance(message, Work):
                with self._lock:
                    self._busy += 1
                pool.submit(self._do, message)
            elif isinstance(message, Change):  # no place in the pool: a download may take long
                threading.Thread(target=self._change, args=(message,), daemon=True).start()
            del message  # a photo need not be held until the next one comes

    def _do(self, work: Work) -> None:
        TRACE.set(Trace(work.request_id))  # until this thread's next request
        self._reply(work.id, lambda: self._answer(work.request))
        with self._lock:
            self._busy -= 1
            self._last_busy = time.monotonic()

    def _answer(self, request: PredictRequest) -> Answer:
        with recording() as stages:
            answer = self._service.answer(request)
        if answer.out_of_memory:
            self._service.models.release()
        return replace(answer, stages=stages)

    def _change(self, message: Change) -> None:
        self._reply(message.id, lambda: self._service.change(message.change))

    def _reply(self, number: int, work: Callable[[], Answer]) -> None:
        """Send what the work gives, an error where there is none: nobody is left waiting."""
        try:
            self._line.send(Done(number, work()))
        except LinkClosedError:
            pass
        except BaseException:  # libraries in Rust panic with one that is no Exception
            log.exception("A request failed in a way that nobody thought of")
            with suppress(LinkClosedError):
                self._line.send(Done(number, failure(500, "Internal error; the server's log says where")))

    def _beat(self) -> None:
        with suppress(LinkClosedError):
            while not self._ended.wait(HEARTBEAT_S):
                self._line.send(Alive(self._service.status(self._busy), self._service.events()))

    def _watch(self) -> None:
        released = time.monotonic()
        with suppress(LinkClosedError):
            while not self._ended.wait(self._poll_s):
                idle = not self._busy and self._last_busy > released
                overdue = self._busy and time.monotonic() - released >= RELEASE_EVERY_S
                if idle or overdue or self._service.models.release_is_due(REST_S):
                    self._service.models.release()
                    released = time.monotonic()
                if not self._service.models.unload_expired() and self._may_end():
                    self._line.send(Idle())

    def _may_end(self) -> bool:
        with self._lock:
            return not self._preload and not self._busy and time.monotonic() - self._last_busy >= self._linger_s

    def _keep_preloading(self) -> None:
        """Preload, and try again what fails, at growing intervals: a hub may come back."""
        left, pause = self._service.preload(self._preload), PRELOAD_PAUSE_S
        while left and not self._ended.wait(pause):
            left, pause = self._service.preload(left), min(2 * pause, PRELOAD_LONGEST_PAUSE_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker on the socket that the front passed on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--line", type=int, required=True, help="file descriptor of the line to the front")
    parser.add_argument("--device-id", type=int, required=True)
    parser.add_argument("--log", type=int, help="file descriptor of the log, where it is not standard error")
    options = parser.parse_args(arguments)
    if options.log is not None:
        sys.stderr = os.fdopen(options.log, "w", buffering=1, errors="backslashreplace")
    # Ctrl-C reaches every process of a terminal, systemd's SIGTERM every one of a service: the front decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Requests are answered beside each other: threads inside each small step only get in each other's way.
    cv2.setNumThreads(1)
    line = WorkerEnd(socket.socket(fileno=options.line))
    try:
        settings = load_settings()
        set_up_logging(settings.log_level, settings.log_format)
        service = Service(settings, options.device_id)
    except (ConfigurationError, OSError) as error:
        with suppress(LinkClosedError):
            line.send(Failed(str(error)))
        return 1
    Worker(line, service, settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
