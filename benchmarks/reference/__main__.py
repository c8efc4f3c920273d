"""Serves: `python -m benchmarks.reference CACHE PORT`.

As uvicorn's "standard" extra does for the stock server, uvloop and httptools are used where they are there
(`make speed` installs them for this process alone: `benchmarks/servers.py`).
"""

import argparse
import logging
import warnings
from pathlib import Path

import uvicorn

from .app import create_app

warnings.simplefilter("ignore", FutureWarning)  # insightface calls what scikit-image deprecates
logging.getLogger("RapidOCR").setLevel(logging.WARNING)

parser = argparse.ArgumentParser()
parser.add_argument("cache", type=Path)
parser.add_argument("port", type=int)
options = parser.parse_args()
uvicorn.run(create_app(options.cache), host="127.0.0.1", port=options.port, log_level="warning", access_log=False)
