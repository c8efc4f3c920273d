"""Graphs on disk in another form than they came: optimised for this CPU, or in half precision.

    <folder>/<the graph's path, as a name>-<stamp of its files>/model.onnx, model.onnx.data, files.json
    <folder>/...making/    there while one is being made, and after a process died of it

ONNX Runtime rearranges a graph and packs its weights when it loads it, for each session anew and into memory of its
own. Written down once, the packed weights are mapped: sessions and processes share their pages, and the system may
drop and read them again.

`files.json` tells how long the files are: where machines share the folder over a file system that moves by copying, one
may see a form in half that another has just made. It does without then.
"""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..disk import flush
from ..memory import release
from . import Array, EngineError, EngineMemoryError, TensorInfo

log = logging.getLogger(__name__)

DATA_SUFFIX = ".data"

_GRAPH = "model.onnx"
_FILES = "files.json"
_MAKING = ".making"
_NAMED_BY = 4  # parts of the path: task, name, type, file
_FORGET_S = 7 * 24 * 3600.0

_TRIAL_SIDE, _TRIAL_TOKENS = 64, 8
"""What a free axis of pixels and of tokens has in a trial: detectors need a multiple of 32."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class DerivedGraphs:
    """The folder of one kind of form. One that cannot be written, or a disk that is full, is done without."""

    folder: Path
    """Different for whatever the form depends on: the version of ONNX Runtime, the kind of CPU."""

    form: str = "an optimised form"
    """What is kept here, for the log."""

    room: int = 4
    """So many times the graph's size must be free: optimised, the weights are written as they were and packed."""

    def load(self, graph: Path, write: Callable[[Path], None], load: Callable[[Path], Loaded]) -> Loaded | None:
        """Load a graph's form, having `write` make it where it is not there; return None without one.

        `write` is told where to, tries what it wrote, and raises EngineError, LookupError or ValueError where that is
        no use. It is not tried again for a week then, nor where the process died of it; after a MemoryError it is. A
        form that `load` raises EngineError for is removed.
        """
        form = self._find(graph, write)
        if form is None:
            return None
        try:
            return load(form)
        except EngineMemoryError as error:
            log.warning("%s is loaded without %s: %s", graph, self.form, error)
        except EngineError as error:
            log.warning("%s is made anew: %s", form, error)
            shutil.rmtree(form.parent, ignore_errors=True)
        return None

    def _find(self, graph: Path, write: Callable[[Path], None]) -> Path | None:
        try:
            home = self.folder / f"{_name(graph)}-{_stamp(graph)}"
            form = home / _GRAPH
            if home.is_dir() and not _is_whole(home):
                if not _making(home).exists():  # else another machine moves it there
                    log.warning("%s is made anew: it is not there as a whole", form)
                    shutil.rmtree(home, ignore_errors=True)
                return None
            if not form.is_file() and not self._make(graph, home, write):
                return None
        except OSError as error:
            log.info("%s is loaded without %s on disk: %s", graph, self.form, error)
            return None
        return form

    def _make(self, graph: Path, home: Path, write: Callable[[Path], None]) -> bool:
        """Make the folder of a form as a whole; tell whether it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        size = sum(file.stat().st_size for file in _files(graph))
        if shutil.disk_usage(self.folder).free < self.room * size:
            log.warning("%s is loaded without %s: the disk has no room for one", graph, self.form)
            return False
        making = _making(home)
        _remove_forgotten(making)
        try:
            making.mkdir()
        except FileExistsError:  # another worker is at it, or died of it: this one does without
            return False
        own = making / uuid.uuid4().hex  # two machines may have made the folder, where creation does not exclude
        try:
            own.mkdir()
            write(own / _GRAPH)
            release()
            (own / _FILES).write_text(json.dumps(_sizes(own)), encoding="utf-8")
            for path in (*own.iterdir(), own):
                flush(path)
            own.rename(home)
            making.rmdir()
        except (EngineError, LookupError, MemoryError, OSError, ValueError) as error:
            log.warning("%s is loaded without %s: %s", graph, self.form, error)
            shutil.rmtree(own, ignore_errors=True)
            if isinstance(error, MemoryError):  # another time there may be enough
                making.rmdir()
            return False  # else the folder stays: it is not tried again at every load
        for other in self.folder.iterdir():
            if other != home and other.name.rpartition("-")[0] == _name(graph) and other.suffix != _MAKING:
                shutil.rmtree(other, ignore_errors=True)  # of what lay there before
        return True


def trial(inputs: Sequence[TensorInfo]) -> dict[str, Array]:
    """Return inputs to try a form with, the same every time: zeros and ones at random, small where axes are free.

    So they are a picture of noise, tokens that are in every vocabulary, and a mask that hides some of them.
    """
    random = np.random.default_rng(0)
    return {info.name: random.integers(0, 2, _trial_shape(info)).astype(info.dtype) for info in inputs}


def _trial_shape(info: TensorInfo) -> list[int]:
    side = _TRIAL_SIDE if info.dtype.kind == "f" else _TRIAL_TOKENS
    shape = [side if axis is None else axis for axis in info.shape]
    return [1, *shape[1:]] if info.shape[:1] == (None,) else shape


def _making(home: Path) -> Path:
    return home.with_name(home.name + _MAKING)


def _is_whole(home: Path) -> bool:
    """Tell whether the files of a form are there and as long as they were made. Raises OSError."""
    try:
        listed = json.loads((home / _FILES).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return bool(listed) and listed == {name: size for name, size in _sizes(home).items() if name != _FILES}


def _sizes(home: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in home.iterdir()}


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
