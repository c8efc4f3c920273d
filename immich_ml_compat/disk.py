"""What is asked of a disk beside reading and writing."""

import errno
import os
from pathlib import Path

_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What file systems answer that cannot be told to wait; failures to write are others."""


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk, where that can be told. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)


def can_write(folder: Path) -> bool:
    """Tell whether a folder can be written to; it is made where it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError:
        return False
    return True
