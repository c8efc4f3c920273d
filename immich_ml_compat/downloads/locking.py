"""One process at a time, as far as the file system can keep others out."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

log = logging.getLogger(__name__)

_POLL_S = 0.2
_SURE_S = 2.0
_GONE_LEASES = 1.5


@contextlib.contextmanager
def alone(path: Path, lease_s: float, what: str, is_abandoned: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock at `path`, waiting for others; `what` is worked on meanwhile, for the log. Raises OSError.

    Who gives no sign of life for `lease_s` seconds, a third of which is the pause between its signs, loses the lock;
    at once who is known to be dead, which `is_abandoned` tells where `SoftFileLease` may not know.
    Where two may create the same file (S3), both may be here at a time: what is done here must be fit for that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(path, lease_duration=lease_s)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process to be done with %s", what)
        _wait(lease, path, lease_s, is_abandoned)
    try:
        yield
    finally:
        owner = lease.owner
        is_shared = owner is None or owner.token != lease.token
        lease.release()
        if is_shared and lease.owner is None:
            path.unlink(missing_ok=True)  # of two holders, one cannot remove it and writes into it that it is free


def _wait(lease: SoftFileLease, path: Path, lease_s: float, is_abandoned: Callable[[], bool]) -> None:
    """Acquire a lock that somebody holds.

    `SoftFileLease` takes an orphan over by exchanging two files' names, which only local file systems can. On others
    the lock is removed here; should its holder live all the same, there are two.
    """
    seen, since = _state(path), time.monotonic()
    while not lease.is_locked:
        if (state := _state(path)) != seen:
            seen, since = state, time.monotonic()
        age = time.monotonic() - since
        if age > _GONE_LEASES * lease_s or (age > _SURE_S and is_abandoned()):
            log.warning("%s is of a process that is no more: removed", path)
            path.unlink(missing_ok=True)
        with contextlib.suppress(Timeout):
            lease.acquire(timeout=min(_SURE_S, lease_s) / 4, poll_interval=min(_POLL_S, lease_s / 10))


def _state(path: Path) -> tuple[int, int] | None:
    try:
        return path.stat().st_mtime_ns, path.stat().st_size
    except FileNotFoundError:
        return None
