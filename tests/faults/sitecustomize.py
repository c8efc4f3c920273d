"""Faults for server processes under test: Python imports this by itself where it stands on PYTHONPATH.

An inference worker dies of a photo that is `fault:SIGNAL`, and a model load hangs while the file that
FAULT_SLOW_LOAD names exists.
"""

import os
import signal
import sys
import time
from pathlib import Path

if "-m" in sys.orig_argv and "immich_ml_compat.worker" in sys.orig_argv:
    from PIL import Image

    from immich_ml_compat import service
    from immich_ml_compat.engine import Session
    from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
    from immich_ml_compat.images import decode

    def fault(data: bytes) -> Image.Image:
        if data.startswith(b"fault:"):
            os.kill(os.getpid(), getattr(signal, data.removeprefix(b"fault:").decode()))
            time.sleep(60)  # the signal takes its time
        return decode(data)

    load = OnnxRuntimeEngine.load

    def slow_load(self: OnnxRuntimeEngine, path: Path) -> Session:
        while Path(os.environ.get("FAULT_SLOW_LOAD", "/nowhere")).exists():
            time.sleep(0.1)
        return load(self, path)

    service.decode = fault  # type: ignore[attr-defined]
    OnnxRuntimeEngine.load = slow_load  # type: ignore[assignment, method-assign]
