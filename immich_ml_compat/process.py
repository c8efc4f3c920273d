"""One inference worker as the front sees it: a process, the line to it, and whether it is well."""

import asyncio
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass

from .link import Alive, Change, Done, Failed, FrontEnd, Idle, LinkClosedError, Message, Ready, Stop, Work
from .native_output import log_output
from .settings import Settings

log = logging.getLogger(__name__)

_START_S = 60.0  # a slow disk reads the inference engine's libraries for a while
_END_S = 10.0
_GRACE_S = 1.0

# For glibc: what one thread has freed another can use. With a heap for each, a worker with all three tasks held 537
# instead of 450 MB of anonymous memory. And pixels of a photo that was answered are the next one's: given back to the
# system and asked for again, page by page, they took 20 ms of a faces request's 100. (With all tasks loaded no more was
# held, with faces alone 80 MB.)
_MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long a worker may be silent (seconds), and for how long a model may take to load (0: any)."""

    silence_s: float = 30.0
    loading_s: float = 300.0

    @classmethod
    def of(cls, settings: Settings) -> "Patience":
        """Return what the settings say."""
        return cls(settings.worker_heartbeat_timeout_s, float(settings.worker_timeout))


class StartError(Exception):
    """A worker did not start; the message says why."""


class WorkerDiedError(Exception):
    """A worker has ended, or hung and been killed; the message says how."""


class WorkerProcess:
    """A running worker."""

    def __init__(self, process: asyncio.subprocess.Process, line: FrontEnd, room: int, patience: Patience) -> None:
        self.room = room
        """Photos it takes at a time; a search beside them."""

        self._process = process
        self._line = line
        self._patience = patience
        self._output: asyncio.Task[None] | None = None  # referred to here, so that it is not forgotten

    @classmethod
    async def start(cls, device_id: int, patience: Patience) -> "WorkerProcess":
        """Start a worker and wait until it is ready. Raises StartError."""
        try:
            process, line, output = await _spawn(device_id)
        except OSError as error:  # no memory for another process, or no file descriptors
            raise StartError(str(error)) from error
        try:
            message = await asyncio.wait_for(line.receive(), _START_S)
        except TimeoutError:
            process.kill()
            cause = f"it was not ready within {_START_S:.0f} s"
        except LinkClosedError:
            cause = describe_end(await process.wait())
        else:
            if isinstance(message, Ready):
                log.info("Started inference worker %d", process.pid)
                worker = cls(process, line, message.room, patience)
                worker._output = output
                return worker
            cause = message.cause if isinstance(message, Failed) else f"it sent {message}"
        line.close()
        await process.wait()
        await output
        raise StartError(cause)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, message: Work | Change) -> None:
        """Hand over a request or a change."""
        self._line.send(message)

    async def receive(self) -> Done | Idle | Alive:
        """Wait for an answer, a sign of life, or for the worker to have no model left. Raises WorkerDiedError."""
        try:
            while True:
                message = await self._hear()
                if isinstance(message, Alive) and 0 < self._patience.loading_s < message.status.loading_s:
                    raise await self._kill(f"a model was still loading after {message.status.loading_s:.0f} s")
                if isinstance(message, Done | Idle | Alive):
                    return message
        except TimeoutError:
            raise await self._kill(f"it was silent for {self._patience.silence_s:.0f} s") from None
        except LinkClosedError:
            self._line.close()
            raise WorkerDiedError(describe_end(await self._process.wait())) from None

    async def _hear(self) -> Message:
        """Wait for a message. Raises TimeoutError after too long a silence."""
        hearing = asyncio.ensure_future(self._line.receive())
        done, _ = await asyncio.wait({hearing}, timeout=self._patience.silence_s)
        if not done:
            # The whole machine may have slept, and the heartbeat be on its way.
            done, _ = await asyncio.wait({hearing}, timeout=_GRACE_S)
        if not done:
            hearing.cancel()
            raise TimeoutError
        return hearing.result()

    async def stop(self) -> None:
        """Let the worker finish and end; kill it where it does not."""
        self._line.send(Stop())
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            await self._kill("it did not end")
        self._line.close()
        log.info("Inference worker %d has ended", self.pid)

    async def kill(self) -> None:
        """End the worker at once."""
        await self._kill("")

    async def _kill(self, why: str) -> WorkerDiedError:
        if self._process.returncode is None:
            self._process.kill()
        self._line.close()
        await self._process.wait()
        return WorkerDiedError(f"{why} and was killed")


async def _spawn(device_id: int) -> tuple[asyncio.subprocess.Process, FrontEnd, asyncio.Task[None]]:
    """Start the process with its end of a new line, and log what its libraries write. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            own_log = os.dup(2)  # its own lines need no bound; what libraries in C write goes by the pipe
        except OSError:
            ours.close()
            raise
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "immich_ml_compat.worker"),
                *("--line", str(theirs.fileno()), "--device-id", str(device_id), "--log", str(own_log)),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[theirs.fileno(), own_log],
                env=_MALLOC | os.environ,
            )
        except OSError:
            ours.close()
            raise
        finally:
            os.close(own_log)
    assert process.stderr is not None
    output = asyncio.ensure_future(log_output(process.stderr, process.pid))
    return process, await FrontEnd.open(ours), output


def describe_end(code: int) -> str:
    """Say in words how a process ended, from its return code."""
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"
