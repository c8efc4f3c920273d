"""Fetches a model of the test in a process of its own, which tests stop at will.

    python -m tests.downloading_process <hub> <cache folder> <lease in seconds> <model> [<moment>]

With a moment it kills itself there, as a power cut would.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from immich_ml_compat.catalog import ModelType, Task
from immich_ml_compat.downloads import Downloader, installing
from immich_ml_compat.downloads.converting import Conversion, Convert
from immich_ml_compat.downloads.huggingface import HuggingFace
from immich_ml_compat.downloads.installing import Installation
from immich_ml_compat.store import ModelKey, ModelStore

from .converting import convert, convert_and_die
from .downloading import AT_ONCE


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def move_one_by_one(move: Any) -> None:
    """Have a disk that cannot rename folders."""
    patch.object(Installation, "_move_whole", lambda *_: False).start()
    patch.object(Installation, "_move", move).start()


def one_file_only(installation: Installation, source: Path, target: Path, **_: Any) -> None:
    if target.exists():  # another process was faster
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    patch.object(Installation, "_move", die).start()


def half_a_file(installation: Installation, source: Path, target: Path, **_: Any) -> None:
    if target.exists():
        return
    if source.stat().st_size < 1000:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes()[:1000])
    die()


MOMENTS: dict[str, Any] = {
    "all files staged": patch.object(Installation, "install", die).start,
    "marker written": patch.object(Installation, "_move_whole", die).start,
    "folder renamed": patch.object(Installation, "_finish", die).start,
    "manifest written": patch.object(installing, "_sync", die).start,
    "one file moved": lambda: move_one_by_one(one_file_only),
    "half a file copied": lambda: move_one_by_one(half_a_file),
}

converters: dict[str, Convert] = {"test": convert}


def half_a_copy(_: Path, target: Path) -> None:
    target.write_bytes(b"half")
    die()


CONVERSION_MOMENTS: dict[str, Any] = {
    "checkpoint staged": patch.object(Conversion, "_make", die).start,
    "half converted": patch.dict(converters, test=convert_and_die).start,
}
"""Those that only models have that are made here."""

ADOPTION: dict[str, Any] = {"half a leftover copied": patch.object(shutil, "copyfile", half_a_copy).start}
"""The moment that only a process has that comes after one that was killed."""


def main(hub: str, cache: str, lease: str, model: str, *moment: str) -> None:
    for name in moment:
        (MOMENTS | CONVERSION_MOMENTS | ADOPTION)[name]()
    Downloader(
        ModelStore(Path(cache)),
        hubs={"huggingface": lambda: HuggingFace(hub)},
        converter=converters["test"],
        patience=AT_ONCE,
        lease_s=float(lease),
    ).fetch(ModelKey(Task.CLIP, model, ModelType.VISUAL))


if __name__ == "__main__":
    main(*sys.argv[1:])
