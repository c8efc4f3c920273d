"""Giving memory back to the system."""

import ctypes
import gc


def release() -> None:
    """Return what has been freed to the system: glibc keeps it for this process otherwise, however much it is."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
