"""One process at a time, also where several machines share a folder."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(path: Path, lease_s: float, what: str) -> Iterator[None]:
    """Hold the lock at `path`, waiting for others; `what` is worked on meanwhile, for the log. Raises OSError.

    Who gives no sign of life for `lease_s` seconds, a third of which is the pause between its signs, loses the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(path, lease_duration=lease_s)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process to be done with %s", what)
        lease.acquire(poll_interval=min(0.2, lease_s / 10))
    try:
        yield
    finally:
        lease.release()
