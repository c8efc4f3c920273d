"""Which processes work on a model: also where neither locks nor exclusive creation keep them apart.

    <cache>/.partial/<task>/<name>/<process>.alive    touched all the time while a process works on the model
    <cache>/.partial/<task>/<name>/<process>/         what it has there

What a process that is no more left behind may be taken over and removed; what is another's stays.
"""

import contextlib
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

log = logging.getLogger(__name__)

_ALIVE = ".alive"
_SIGNS_PER_LEASE = 3
_LONGEST_POLL_S = 0.2


def _machine() -> str:
    """What processes have in common that see each other by their numbers; nothing where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    return sha256(f"{socket.gethostname()} {boot} {namespace}".encode()).hexdigest()[:12]


def _started(pid: int) -> str | None:
    """When a process of this machine began, as the kernel counts; None where it is no more."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]


_MACHINE = _machine()


def this_process() -> str:
    """Return this process's name, which no other has on any machine."""
    return _named(os.getpid())  # which is another in a fork


@cache
def _named(pid: int) -> str:
    return f"{_MACHINE}-{pid}-{_started(pid) or 0}-{uuid.uuid4().hex[:8]}"


def _is_running(process: str) -> bool | None:
    """Tell whether a process of that name runs; None where that cannot be seen from here."""
    found = re.fullmatch(r"(\w+)-(\d+)-(\d+)-\w+", process)
    if not found or found[1] != _MACHINE:
        return None
    return _started(int(found[2])) == found[3]


class Presence:
    """The signs of life of those who work on one model."""

    def __init__(self, root: Path, lease_s: float) -> None:
        """`root` is the model's folder in `.partial`. Who gave no sign for `lease_s` seconds counts as gone."""
        self.root = root
        self.own = root / this_process()
        """The folder of this process; to be made by who needs it."""
        self._lease_s = lease_s
        self._touched: list[Path] = []
        self._seen: dict[Path, tuple[int, float]] = {}

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Give signs of life meanwhile. Raises OSError."""
        sign = self._sign(this_process())
        self._show(sign)
        self._touched = [sign]
        over = threading.Event()
        thread = threading.Thread(target=self._go_on, args=[over], daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OSError):  # others may be in that folder, too
                sign.unlink(missing_ok=True)
                self.root.rmdir()

    def is_alive(self, process: str) -> bool:
        """Tell whether a process works on the model, as far as can be seen at once, while this one is `shown`.

        Those of other machines are judged by the file system's times: of both signs, so that no clock is asked.
        """
        if (running := _is_running(process)) is False:
            return False
        try:
            os.utime(self._sign(this_process()))
            age = self._sign(this_process()).stat().st_mtime - self._sign(process).stat().st_mtime
        except FileNotFoundError:
            return self._sign(process).exists()
        return running is True or age <= self._lease_s

    def is_abandoned(self) -> bool:
        """Tell whether there are signs of life, all of them of processes of this machine that are no more."""
        with contextlib.suppress(OSError):
            signs = [path.name.removesuffix(_ALIVE) for path in self.root.iterdir() if path.name.endswith(_ALIVE)]
            return bool(signs) and all(_is_running(process) is False for process in signs)
        return False

    def keep_fresh(self, marker: Path) -> None:
        """Touch another file, too, as long as this process is shown."""
        self._touched.append(marker)

    def wait_for(self, markers: Callable[[], Mapping[Path, str]]) -> None:
        """Wait until no process keeps any of the `markers` fresh, which are given with their process."""
        told = False
        while others := [path for path, process in markers().items() if not self.is_over(path, process)]:
            if not told:
                log.info("Waiting for another process, until %s is gone", others[0])
                told = True
            time.sleep(min(_LONGEST_POLL_S, self._lease_s / 10))

    def is_over(self, marker: Path, process: str) -> bool:
        """Tell whether a marker is this process's, or of one that certainly has no more to do with it.

        Unlike `is_alive` this takes its time: of another machine's marker it must have been asked first so many
        seconds ago, by this process's own clock, and the marker must not have been touched since.
        """
        if process == this_process() or _is_running(process) is False:
            return True
        try:
            touched = marker.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        seen, since = self._seen.get(marker, (None, 0.0))
        if seen != touched:
            self._seen[marker] = touched, time.monotonic()
            return False
        return time.monotonic() - since > self._lease_s

    def clear(self) -> None:
        """Remove this process's folder, and all that those left who are no more."""
        for path in list(self.root.iterdir()) if self.root.is_dir() else ():
            process = path.name.removesuffix(_ALIVE)
            if process == this_process() or not self.is_alive(process):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif process != this_process():
                    with contextlib.suppress(OSError):
                        path.unlink()

    def _show(self, sign: Path) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            sign.touch()
        except FileNotFoundError:  # another process has just left, and removed the folder
            self.root.mkdir(parents=True, exist_ok=True)
            sign.touch()

    def _sign(self, process: str) -> Path:
        return self.root / f"{process}{_ALIVE}"

    def _go_on(self, over: threading.Event) -> None:
        while not over.wait(self._lease_s / _SIGNS_PER_LEASE):
            for path in self._touched.copy():
                try:
                    os.utime(path)
                except FileNotFoundError:
                    pass  # somebody takes this process for dead, or it is done with the marker
                except OSError as error:  # a disk that is out of reach for a while
                    log.debug("%s cannot be touched: %s", path, error)
