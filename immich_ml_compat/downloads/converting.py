"""Models that no hub has as they lie in the cache folder: made here from an official checkpoint.

The checkpoint comes in, the files made of it are put in place like downloaded ones, and the manifest has their
sums under the checkpoint's address. What is made is the same each time, so it can be made again to mend a folder.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ..catalog import ModelType, Task
from ..chinese_clip.checkpoint import CheckpointError
from ..errors import ModelUnavailableError
from ..store import CONFIG, GRAPH, ModelStore, expected_files
from .failures import DownloadError, require_space
from .files import RemoteFile
from .installing import Installation
from .manifest import MANIFEST, Manifest, ManifestFile, describe, read_manifest
from .progress import Progress
from .staging import Staging

log = logging.getLogger(__name__)


class Convert(Protocol):
    """Writes a model's folder; `chinese_clip.conversion.convert` says how."""

    def __call__(
        self,
        checkpoint: Path,
        name: str,
        folder: Path,
        *,
        half: bool,
        begin: Callable[[int], None],
        progress: Callable[[int], None],
    ) -> None:
        """Raises CheckpointError, and OSError for what the disk refuses."""


def convert(
    checkpoint: Path,
    name: str,
    folder: Path,
    *,
    half: bool,
    begin: Callable[[int], None],
    progress: Callable[[int], None],
) -> None:
    """Convert a Chinese-CLIP checkpoint. Raises CheckpointError, OSError."""
    from ..chinese_clip import conversion  # here, as a server whose models are all on disk never needs it

    conversion.convert(checkpoint, name, folder, half=half, begin=begin, progress=progress)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine, and where it came from."""

    path: Path
    address: str


def own(path: Path) -> Checkpoint:
    """Return a person's own checkpoint; it is only read."""
    path = path.absolute()
    return Checkpoint(path, path.as_uri())


Obtain = Callable[[Staging], Checkpoint]
"""Gets the checkpoint, through the staging area where it has to be downloaded. Raises DownloadError, OSError."""

_Choice = tuple[list[str], list[str]]
"""Files to put in place, and those of them that replace others."""


class Conversion:
    """One model's folder and the checkpoint it is made from. Only one at a time may work on a model."""

    def __init__(self, store: ModelStore, task: Task, name: str, converter: Convert) -> None:
        self._store = store
        self._task = task
        self._name = name
        self._convert = converter
        self._folder = store.model_folder(task, name)
        self._installation = Installation(self._folder, store.marker(task, name), store.partial(task, name))

    def bring(self, obtain: Obtain, damaged: ModelType | None = None, *, half: bool = False) -> None:
        """Make what the folder lacks, or the `damaged` tower as far as its files are not those that were made.

        Where nothing lacks the checkpoint is not asked for. Raises DownloadError, also for a checkpoint that cannot
        be used, OSError for what the disk refuses, and ModelUnavailableError where the tower is as it was made.
        """
        if damaged is not None:
            if address := self._made_from(damaged):
                raise self._cannot_run(address)
            self._run(obtain, lambda made: self._damaged(damaged, made), half=half)
        elif not self._is_complete():
            self._run(obtain, self._missing, half=half)

    def bring_from_own(self, path: Path, damaged: ModelType | None = None) -> bool:
        """Do the same with a person's own checkpoint, which is only read; tell whether it served.

        Raises OSError and ModelUnavailableError as `bring`.
        """
        if not _can_be_read(path):
            return False
        try:
            self.bring(lambda _: own(path), damaged)
        except DownloadError as error:
            log.warning("%s/%s: %s. Downloading instead", self._task, self._name, error)
            return False
        return True

    def _run(self, obtain: Obtain, choose: Callable[[Manifest], _Choice], *, half: bool = False) -> None:
        with Staging(self._store.partial(self._task, self._name)) as staging:
            checkpoint = obtain(staging)
            made = self._make(checkpoint, staging, half=half)
            chosen, damaged = choose(made)
            for path in made.files.keys() - set(chosen):
                (staging.made / path).unlink()
            new = Manifest(files={path: made.files[path] for path in chosen})
            self._installation.install(staging.made, new, damaged)

    def _make(self, checkpoint: Checkpoint, staging: Staging, *, half: bool) -> Manifest:
        """Convert into `staging.made` and return what is there."""
        start = time.monotonic()
        log.info("Converting %s to %s/%s", checkpoint.address, self._task, self._name)
        folder = staging.clear_made()
        try:
            with Progress(f"Converting {self._name}") as progress:

                def begin(size: int) -> None:
                    require_space(folder, size)
                    progress.expect(self._name, size)

                self._convert(checkpoint.path, self._name, folder, half=half, begin=begin, progress=progress.advance)
                files = [path for path in folder.rglob("*") if path.is_file()]
        except CheckpointError as error:
            cause = str(error).rstrip(".")
            if staging.discard(checkpoint.path):
                cause = cause.replace(str(checkpoint.path), checkpoint.address)
            raise DownloadError(
                cause, "Another copy can be converted with `immich-ml-compat models convert`"
            ) from error
        for path in files:
            with path.open("rb") as content:
                os.fsync(content.fileno())
        paths = sorted(path.relative_to(folder).as_posix() for path in files)
        log.info("Converted %s/%s in %.1f s", self._task, self._name, time.monotonic() - start)
        return describe([RemoteFile(path, checkpoint.address) for path in paths], folder)

    def _known(self) -> Mapping[str, ManifestFile]:
        return (read_manifest(self._folder / MANIFEST) or Manifest()).files

    def _is_complete(self) -> bool:
        missing = self._store.missing(self._task, self._name)
        there = not missing and all((self._folder / path).exists() for path in self._known())
        return there and not self._installation.is_open

    def _made_from(self, kind: ModelType) -> str | None:
        """Return the address of the checkpoint where all of a tower is as it was made; otherwise None."""
        known = self._known()
        scope = [path for path in {*known, *expected_files(self._task)} if _belongs(path, kind)]
        if all(path in known and known[path].is_at(self._folder / path) for path in scope):
            return known[f"{kind}/{GRAPH}"].address
        return None

    def _missing(self, made: Manifest) -> _Choice:
        """Choose what the folder lacks. A graph and its weights come together, or not at all beside others' own."""
        interrupted = self._installation.interrupted.files

        def is_right(path: str) -> bool:
            return made.files[path].is_at(self._folder / path)

        def is_lacking(path: str) -> bool:
            # What an interrupted installation left may be half a file, where the disk cannot rename at once.
            return not (self._folder / path).exists() or (path in interrupted and not is_right(path))

        def is_wanted(path: str) -> bool:
            graph = _graph_of(path)
            return not is_right(path) and (is_lacking(graph) or (is_lacking(path) and is_right(graph)))

        chosen = [path for path in made.files if is_wanted(path)]
        return chosen, [path for path in chosen if not is_lacking(path)]  # weights whose graph is gone

    def _damaged(self, kind: ModelType, made: Manifest) -> _Choice:
        """Choose what may keep a tower from loading: small files that lack, its graph and weights, else the others."""
        scope = {path: file for path, file in made.files.items() if _belongs(path, kind)}
        wrong = [path for path, file in scope.items() if not file.is_at(self._folder / path)]
        if not wrong:
            raise self._cannot_run(next(iter(scope.values())).address)
        lacking = [path for path in wrong if _is_small(path) and not (self._folder / path).exists()]
        if lacking and f"{kind}/{GRAPH}" not in self._known():
            return lacking, []  # a person's own graph may be fine but for that
        chosen = [*lacking, *(path for path in wrong if not _is_small(path))] or wrong
        return chosen, chosen

    def _cannot_run(self, address: str) -> ModelUnavailableError:
        return ModelUnavailableError(
            f"Model '{self._name}' does not load, though its files are those made from {address}: "
            f"this server's engine cannot run it, or has too little memory"
        )


def _can_be_read(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except FileNotFoundError:
        log.info("%s is not there: downloading instead", path)
        return False
    except OSError as error:
        log.warning("%s cannot be read (%s): downloading instead", path, error.strerror)
        return False


def _belongs(path: str, kind: ModelType) -> bool:
    return path == CONFIG or path.startswith(f"{kind}/")


def _is_small(path: str) -> bool:
    return path.endswith(".json")


def _graph_of(path: str) -> str:
    """Return the graph that a file holds weights of; for all others the path itself."""
    return path if _is_small(path) else (PurePosixPath(path).parent / GRAPH).as_posix()
