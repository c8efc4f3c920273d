"""Graphs on disk as ONNX Runtime has optimised them for this CPU: quicker to load, and in memory only once.

ONNX Runtime rearranges a graph and packs its weights when it loads it, for each session anew and into memory of its
own. Written down once, the packed weights are mapped: sessions and processes share their pages, and the system may
drop and read them again.

    <folder>/<the graph's path, as a name>-<stamp of its files>/model.onnx, model.onnx.data
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..memory import release
from . import EngineError

log = logging.getLogger(__name__)

DATA_SUFFIX = ".data"

_GRAPH = "model.onnx"
_MAKING = ".making"
_NAMED_BY = 4  # parts of the path: task, name, type, file
_FREE_FOR = 4  # times the graph's size must be free: the weights are written as they were and packed
_FORGET_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class OptimizedGraphs:
    """The folder of them. One that cannot be written, or a disk that is full, is done without."""

    folder: Path
    """Different for each version of ONNX Runtime and each kind of CPU."""

    def find(self, graph: Path, write: Callable[[Path], None]) -> Path | None:
        """Return the optimised form of a graph, having `write` make it where it is not there; None without one.

        `write` is told where to, tries what it wrote, and raises EngineError, LookupError or ValueError where that is
        no use. It is not tried again for a week then, nor where the process died of it.
        """
        try:
            home = self.folder / f"{_name(graph)}-{_stamp(graph)}"
            optimized = home / _GRAPH
            if not optimized.is_file() and not self._make(graph, home, write):
                return None
        except OSError as error:
            log.info("%s is loaded without an optimised form on disk: %s", graph, error)
            return None
        return optimized

    def discard(self, optimized: Path) -> None:
        """Remove an optimised form that does not load."""
        shutil.rmtree(optimized.parent, ignore_errors=True)

    def _make(self, graph: Path, home: Path, write: Callable[[Path], None]) -> bool:
        """Make the folder of an optimised form as a whole; tell whether it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        size = sum(file.stat().st_size for file in _files(graph))
        if shutil.disk_usage(self.folder).free < _FREE_FOR * size:
            log.warning("%s is loaded without an optimised form: the disk has no room for one", graph)
            return False
        making = home.with_name(home.name + _MAKING)
        _remove_forgotten(making)
        try:
            making.mkdir()
        except FileExistsError:  # another worker is at it, or died of it: this one does without
            return False
        try:
            write(making / _GRAPH)
            release()
            for path in (*making.iterdir(), making):
                _flush(path)
            making.rename(home)
        except (EngineError, LookupError, OSError, ValueError) as error:
            log.warning("%s is loaded without an optimised form: %s", graph, error)
            for path in making.iterdir():  # the folder stays: it is not tried again at every load
                path.unlink()
            return False
        for other in self.folder.iterdir():
            if other != home and other.name.rpartition("-")[0] == _name(graph) and other.suffix != _MAKING:
                shutil.rmtree(other, ignore_errors=True)  # of what lay there before
        return True


def _flush(path: Path) -> None:
    """Wait until a file or folder is on disk: a form must not be there without its weights."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(graph: Path) -> str:
    return "_".join(graph.with_suffix("").parts[-_NAMED_BY:])


def _stamp(graph: Path) -> str:
    """What changes when the graph or the weights beside it do."""
    states = [(file.name, stat.st_size, stat.st_mtime_ns) for file in _files(graph) for stat in [file.stat()]]
    return sha256(repr(states).encode()).hexdigest()[:16]


def _files(graph: Path) -> list[Path]:
    """The graph and what lies beside it: weights may be in files of any name."""
    beside = (file for file in graph.parent.iterdir() if file != graph and not file.name.startswith("."))
    return [graph, *sorted(file for file in beside if file.is_file() and ".broken-" not in file.name)]


def _remove_forgotten(making: Path) -> None:
    try:
        age = time.time() - making.stat().st_mtime
    except OSError:
        return
    if abs(age) > _FORGET_S:  # the clock may have been set back
        shutil.rmtree(making, ignore_errors=True)
