"""Faults for server processes under test: Python imports this by itself where it stands on PYTHONPATH.

An inference worker dies of a photo that is `fault:SIGNAL` and panics at `fault:panic`; a model load hangs while the
file that FAULT_SLOW_LOAD names exists, a run of a graph while the one that FAULT_SLOW_RUN names does. In every process
the clock is a year behind while the file that FAULT_CLOCK names exists.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

now = time.time

if "FAULT_CLOCK" in os.environ:
    time.time = lambda: now() - 365 * 86400 * Path(os.environ["FAULT_CLOCK"]).exists()

if "-m" in sys.orig_argv and "immich_ml_compat.worker" in sys.orig_argv:
    from immich_ml_compat import service
    from immich_ml_compat.engine import Array
    from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeSession
    from immich_ml_compat.images import Photo

    class Panic(BaseException):
        """What a library in Rust raises."""

    def fault(data: bytes, most_pixels: int, *, upright: bool) -> Photo:
        if data == b"fault:panic":
            raise Panic
        if data.startswith(b"fault:"):
            os.kill(os.getpid(), getattr(signal, data.removeprefix(b"fault:").decode()))
            time.sleep(60)  # the signal takes its time
        return Photo(data, most_pixels, upright=upright)

    def wait_for(variable: str) -> None:
        while Path(os.environ.get(variable, "/nowhere")).exists():
            time.sleep(0.1)

    load, run = OnnxRuntimeEngine.load, OnnxRuntimeSession.run

    def slow_load(self: OnnxRuntimeEngine, path: Path) -> OnnxRuntimeSession:
        wait_for("FAULT_SLOW_LOAD")
        return load(self, path)

    def slow_run(self: OnnxRuntimeSession, inputs: Mapping[str, Array]) -> list[Array]:
        wait_for("FAULT_SLOW_RUN")
        return run(self, inputs)

    OnnxRuntimeEngine.load = slow_load  # type: ignore[method-assign]
    OnnxRuntimeSession.run = slow_run  # type: ignore[method-assign]
    service.Photo = fault  # type: ignore[attr-defined, assignment]
