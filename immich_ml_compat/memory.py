"""Giving memory back to the system, and what is held of it."""

import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

_MAPPINGS = Path("/proc/self/maps")
_USED = Path("/proc/self/statm")
_DONTNEED = 4  # MADV_DONTNEED of Linux
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h


def release() -> None:
    """Return what has been freed to the system: glibc keeps it for this process otherwise, however much it is."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


def keep_freed(most_bytes: int) -> None:
    """Have this process keep so much of what it has freed, where the C library is glibc.

    By itself glibc gives the end of its heap back when little of it is free, and the next photo's bytes are handed out
    page by page again: that took the front half a millisecond of a request of 40.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, most_bytes)
        mallopt(_TRIM_THRESHOLD, most_bytes)


def resident_bytes() -> int:
    """Return what this process holds, shared pages included; the most it ever held where no more is known."""
    try:
        return int(_USED.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def release_pages(folder: Path) -> None:
    """Let go of what is in memory of the files that are mapped from a folder; what is read again comes from there.

    Only of shared mappings that cannot be written to, which lose nothing by it, and only on Linux.
    """
    try:
        mappings = _MAPPINGS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    for line in mappings:
        span, access, *_, path = line.split(maxsplit=5) if line.count("/") else ("", "", "")
        if access == "r--s" and path.startswith(f"{folder.resolve()}/"):
            start, stop = (int(end, 16) for end in span.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONTNEED)
