"""Models that no hub has as they lie in the cache folder: made here from an official checkpoint.

The checkpoint comes in, the files made of it are put in place like downloaded ones, and the manifest has their
sums under the checkpoint's address. What is made is the same each time, so it can be made again to mend a folder:
which files is in `mending.py`, and with which checkpoint in `origin.py`.
"""

import errno
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict, Unpack

from ..catalog import ModelType, Task
from ..chinese_clip.checkpoint import CheckpointError
from ..chinese_clip.configuration import small_file, small_paths
from ..disk import flush
from ..errors import ModelUnavailableError
from ..store import GRAPH, ModelStore
from .failures import DownloadError, require_space
from .files import RemoteFile
from .installing import Installation
from .manifest import Manifest, describe
from .mending import Folder
from .origin import is_own, is_small
from .presence import Presence
from .progress import Progress
from .staging import Staging

log = logging.getLogger(__name__)


class Options(TypedDict):
    """How `chinese_clip.conversion.convert`, which says what they mean, is called."""

    half: bool
    begin: Callable[[int], None]
    progress: Callable[[int], None]


class Convert(Protocol):
    """Writes a model's folder."""

    def __call__(self, checkpoint: Path, name: str, folder: Path, **options: Unpack[Options]) -> None:
        """Raises CheckpointError, and OSError for what the disk refuses."""


def convert(checkpoint: Path, name: str, folder: Path, **options: Unpack[Options]) -> None:
    """Convert a Chinese-CLIP checkpoint. Raises CheckpointError, OSError."""
    from ..chinese_clip import conversion  # here, as a server whose models are all on disk never needs it

    conversion.convert(checkpoint, name, folder, **options)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine, and where it came from."""

    path: Path
    address: str


def own(path: Path) -> Checkpoint:
    """Return a person's own checkpoint; it is only read."""
    path = path.absolute()
    return Checkpoint(path, path.as_uri())


def require_readable(path: Path) -> None:
    """Raise OSError for a checkpoint that cannot be read."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "Not a regular file", str(path))  # opening a pipe waits for who writes into it
    with path.open("rb"):
        pass


Obtain = Callable[[Staging], Checkpoint]
"""Gets the checkpoint, through the staging area where it has to be downloaded. Raises DownloadError, OSError."""

_PACKAGE = "immich-ml-compat"
"""The address of small files that come from this package alone."""


class Conversion:
    """One model's folder and the checkpoint it is made from. As far as possible, one at a time works on a model."""

    def __init__(self, store: ModelStore, task: Task, name: str, converter: Convert, presence: Presence) -> None:
        self._store = store
        self._task = task
        self._name = name
        self._convert = converter
        self._folder = store.model_folder(task, name)
        self._presence = presence
        self._installation = Installation(store, task, name, presence)

    def needs_checkpoint(self, damaged: ModelType | None = None) -> bool:
        """Mend what needs none; tell whether one is needed to make what the folder lacks, or the `damaged` tower.

        Raises OSError, and ModelUnavailableError where the tower is as it was made.
        """
        folder = Folder(self._folder, self._name)
        if damaged is None:
            wrong = folder.lost()
            lacks_graph = self._store.missing(self._task, self._name) or not all(map(is_small, wrong))
            if lacks_graph or self._installation.is_open:
                return True
        else:
            changed = folder.changed(damaged)
            if not all(map(is_small, changed)):
                return True
            graph = folder.known.get(f"{damaged}/{GRAPH}")
            wrong = folder.broken(damaged)
            if not wrong and graph is None:
                return True  # only a comparison tells what is wrong with it
            wrong = wrong or changed
            if not wrong and graph is not None:
                raise self._cannot_run(graph.address)
        self._renew(wrong, folder)
        return False

    def bring_from_own(self, given: Path | None, damaged: ModelType | None = None) -> bool:
        """Do as `bring` with a checkpoint on the disk, the one `given` or that of the folder; tell whether one served.

        It is only read. Raises OSError, and ModelUnavailableError as `bring`, and where no other checkpoint will do.
        """
        origin = Folder(self._folder, self._name).origin
        required = origin.own if origin else None
        failures: dict[Path, str] = {}
        for path in dict.fromkeys(path for path in (required, given) if path is not None):
            if not (failure := self._try_own(path, damaged)):
                return True
            failures[path] = failure
        if origin is not None and required is not None:
            raise ModelUnavailableError(
                f"Model '{self._name}' was made from {origin.address}, and nothing else fits what is left of it: "
                f"{'; '.join(failures.values())}. Put that file back, or remove the model and convert it again: "
                f"`immich-ml-compat models remove {self._name}`, `immich-ml-compat models convert`"
            )
        for path, failure in failures.items():
            level = logging.WARNING if path.exists() else logging.INFO
            log.log(level, "%s/%s: %s. Downloading instead", self._task, self._name, failure)
        return False

    def bring(self, obtain: Obtain, damaged: ModelType | None = None, *, half: bool = False) -> None:
        """Make what the folder lacks, or the `damaged` tower as far as its files are not those that are made.

        In float16 where `half`, or where the folder was made so. Raises DownloadError, also for a checkpoint that
        cannot be used, OSError for what the disk refuses, and ModelUnavailableError where the tower is as it is made,
        or memory too short.
        """
        folder = Folder(self._folder, self._name)
        origin = folder.origin
        half = half or (origin is not None and origin.half)
        try:
            with Staging(self._presence) as staging:
                checkpoint = obtain(staging)
                made = self._make(checkpoint, staging, half=half)
                if origin is not None and is_own(checkpoint.address) and not origin.makes(made):
                    raise DownloadError(f"{checkpoint.path} is not the checkpoint that {self._folder} was made from")
                chosen, replaced = self._choose(damaged, made, folder)
                for path in made.files.keys() - set(chosen):
                    (staging.made / path).unlink()
                new = Manifest(files={path: made.files[path] for path in chosen})
                self._installation.install(staging.made, new, replaced)
        except MemoryError as error:
            # Outside the context: a checkpoint that was downloaded is as good as before.
            raise ModelUnavailableError(
                f"Model '{self._name}' could not be made: too little memory to convert the checkpoint. Give this "
                f"server more, or convert it elsewhere (`immich-ml-compat models convert`) and copy the folder here"
            ) from error

    def _try_own(self, path: Path, damaged: ModelType | None) -> str:
        """Bring from a file; return why it did not serve."""
        try:
            require_readable(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        try:
            self.bring(lambda _: own(path), damaged)
        except DownloadError as error:
            return str(error)
        return ""

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
            flush(path)
        paths = sorted(path.relative_to(folder).as_posix() for path in files)
        log.info("Converted %s/%s in %.1f s", self._task, self._name, time.monotonic() - start)
        return describe([RemoteFile(path, checkpoint.address) for path in paths], folder, half=half)

    def _renew(self, paths: list[str], folder: Folder) -> None:
        """Put this package's small files in the place of those that are there, which are set aside."""
        files = {path: small_file(self._name, path) for path in paths if path in small_paths(self._name)}
        if not files:
            return
        self._presence.own.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._presence.own, ignore_cleanup_errors=True) as name:
            staged = Path(name)
            for path, content in files.items():
                (staged / path).parent.mkdir(exist_ok=True)
                (staged / path).write_bytes(content)
            address = folder.origin.address if folder.origin else _PACKAGE
            new = describe([RemoteFile(path, address) for path in files], staged)
            self._installation.install(staged, new, files)

    def _choose(self, damaged: ModelType | None, made: Manifest, folder: Folder) -> tuple[list[str], list[str]]:
        """Return which of the files that were made are put in place, and those of them that replace others."""
        if damaged is None:
            chosen, replaced = folder.missing(made.files, self._installation.interrupted.files)
        else:
            replaced = folder.wrong(damaged, made.files)
            if not replaced:
                # The next time that is known without a checkpoint.
                self._installation.record(Manifest(files=dict(folder.right(damaged, made.files))))
                raise self._cannot_run(made.files[f"{damaged}/{GRAPH}"].address)
            chosen = list({*replaced, *folder.lacking(damaged, made.files)})
        for path in folder.strangers(chosen, made.files):
            log.warning(
                "%s/%s: what %s was made from is not known: text finds photos only where both towers are of the same "
                "checkpoint, and the other one is of %s now",
                self._task,
                self._name,
                self._folder / path,
                made.files[path].address,
            )
        return chosen, replaced

    def _cannot_run(self, address: str) -> ModelUnavailableError:
        return ModelUnavailableError(
            f"Model '{self._name}' does not load, though its files are those made from {address}: "
            f"this server's engine cannot run it, or has too little memory"
        )
