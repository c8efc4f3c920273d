"""The black-box conformance tests of the Immich contract, against a running server."""

import os
import re
import subprocess
import sys
from pathlib import Path

from .model_folders import CLIP, FACES, OCR
from .oracles import packaged
from .server import Server

HERE = Path(__file__).parent


def test_conformance(server: Server) -> None:
    environment = os.environ | {
        "ML_URL": server.url,
        "ML_OCR": OCR,
        "ML_FACE": FACES,
        "ML_CLIP": CLIP,
        "ML_FACE_IMAGE": str(packaged("insightface", "data/images/t1.jpg")),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-c", os.devnull, "--rootdir", str(HERE)]
    command.append(str(HERE / "conformance"))
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    # Nothing may be left out, `hardening` and `textual` included.
    assert re.search(r"^9\d passed in", run.stdout, re.MULTILINE), run.stdout
