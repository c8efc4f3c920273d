"""Why a download failed, in one line that says what to do, and how long to go on trying."""

import errno
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path


class DownloadError(Exception):
    """A hub did not give what was asked for. The text is the cause; what to do about it is the remedy."""

    def __init__(
        self, cause: str, remedy: str = "", *, transient: bool = False, retry_after_s: float | None = None
    ) -> None:
        """`transient` failures are worth another try, at the earliest after `retry_after_s` seconds."""
        super().__init__(cause)
        self.remedy = remedy
        self.transient = transient
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and how long, a failing hub is asked again."""

    attempts: int = 4
    """Tries in a row that bring nothing."""

    first_wait_s: float = 1.0
    """Seconds before the second try; each further wait is twice as long."""

    longest_wait_s: float = 60.0
    """The most seconds a hub may ask to be left alone before that counts as a failure."""

    def wait(self, failures: int, error: DownloadError) -> None:
        """Wait before the next try, or raise the error where there should be none."""
        seconds = self.first_wait_s * 2 ** (failures - 1) if error.retry_after_s is None else error.retry_after_s
        if not error.transient or failures >= self.attempts or seconds > self.longest_wait_s:
            raise error
        time.sleep(seconds)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError where a folder's disk has not as many bytes free."""
    # Better said at once than after an hour, with the disk full for everybody else too.
    free = shutil.disk_usage(folder).free
    if needed > free:
        detail = f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {detail}", str(folder))


def explain_disk(error: OSError, cache: Path) -> str:
    """Say in words what the cache folder's disk refused, and what to do."""
    cause = error.strerror or str(error)
    if error.errno in DISK_FULL:
        return f"{cache} is full ({cause}). Free some space there, or have a larger disk as the cache folder"
    if error.errno in _NOT_WRITABLE:
        return (
            f"{cache} cannot be written to ({cause}). Mount it writable for this server's user, or put the model "
            f"there with `immich-ml-compat models download` where it can be written"
        )
    return f"{cache} could not be used ({cause}: {error.filename or 'no file named'}). Check that disk"
