"""Downloads models into the cache folder: one process at a time, each model whole or not at all."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..catalog import CHINESE_CLIP_DIMENSIONS, EMBEDDED_OCR, ModelType, Task
from ..errors import ModelUnavailableError
from ..settings import PREFIX
from ..store import CONFIG, GRAPH, ModelFiles, ModelKey, ModelStore
from .converting import Checkpoint, Conversion, Convert, Obtain, convert
from .failures import DownloadError, Patience, explain_disk, require_space
from .files import RemoteFile
from .hub import Hub
from .installing import Installation
from .locking import alone
from .manifest import describe
from .presence import Presence
from .progress import Progress
from .sources import HubName, Source, checkpoint_name, sources
from .staging import Staging

log = logging.getLogger(__name__)

HubFactory = Callable[[], Hub]
_Work = Callable[[Hub, Source], None]

# Not raised to the time a download takes: the holder of the lock says every third of it that it is alive.
_LEASE_S = 60.0
_PAUSE_S = 30.0
_ROUNDS = 10


def _huggingface() -> Hub:
    from .huggingface import HuggingFace  # here, as a server whose models are all on disk never needs it

    return HuggingFace()


def _modelscope() -> Hub:
    from .modelscope import ModelScope

    return ModelScope()


HUBS: dict[HubName, HubFactory] = {"huggingface": _huggingface, "modelscope": _modelscope}
"""How each hub's client is made."""


class Downloader:
    """Gets models from the hubs. Safe to use from several threads and from several processes on one folder."""

    def __init__(
        self,
        store: ModelStore,
        first: HubName = "huggingface",
        *,
        checkpoints: Path | None = None,
        hubs: Mapping[HubName, HubFactory] = HUBS,
        converter: Convert = convert,
        patience: Patience = Patience(),  # noqa: B008 (it is immutable)
        lease_s: float = _LEASE_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        """`first` is asked before other hubs that have a model.

        Official checkpoints that lie in the folder `checkpoints` are converted from there, not downloaded.
        After `lease_s` seconds without a sign of life another process takes a download over; all processes on
        a folder must have the same. For `pause_s` seconds after a failure the same request fails at once.
        """
        self._store = store
        self._first = first
        self._checkpoints = checkpoints
        self._factories = hubs
        self._converter = converter
        self._hubs: dict[HubName, Hub] = {}
        self._patience = patience
        self._lease_s = lease_s
        self._pause_s = pause_s
        self._presences: dict[tuple[Task, str], Presence] = {}
        self._failed: dict[tuple[Task, str], tuple[float, str]] = {}
        self._counting = threading.Lock()
        self._counts = (0, 0)

    def fetch(self, key: ModelKey) -> ModelFiles:
        """Download the model of a graph and return the graph's files. Raises ModelUnavailableError."""
        self._raise_recent_failure(key.task, key.name)
        try:
            with self.alone(key.task, key.name):
                files = self._have(key.task, key.name, key)
            return files or self._found(key)
        except ModelUnavailableError:
            # Where this process slept so long that another took over, that one may have got it.
            if files := self._store.find(key):
                return files
            raise

    def replace(self, key: ModelKey) -> ModelFiles:
        """Download what does not load, set the damaged files aside, and return the graph's files.

        Only files that differ from the hub's are touched, and only once fresh ones are there: the graph and
        its weights, or where those are as they should be, its small files. Raises ModelUnavailableError.
        """
        self._raise_recent_failure(key.task, key.name)
        if not sources(key.task, key.name):
            folder = self._store.model_folder(key.task, key.name)
            raise ModelUnavailableError(
                f"Model '{key.name}' does not load, and no hub is known to have it: check {folder}"
            )
        with self.alone(key.task, key.name):
            self._installation(key.task, key.name).resume()
            if checkpoint := checkpoint_name(key.task, key.name):
                self._make(key.task, key.name, checkpoint, key.type)
            else:
                self._from_a_source(key.task, key.name, lambda hub, source: self._renew(hub, source, key))
            self._installation(key.task, key.name).settle()
            files = self._store.find(key)
        return files or self._found(key)

    def download(self, task: Task, name: str) -> None:
        """Download what a model lacks, all of it if need be. Raises ModelUnavailableError."""
        with self.alone(task, name):
            self._have(task, name)

    def published(self, task: Task, name: str) -> list[RemoteFile]:
        """Return the files that the first hub in reach has of a model. Raises ModelUnavailableError."""
        found: list[RemoteFile] = []
        self._from_a_source(task, name, lambda hub, source: found.extend(self._list(hub, source)))
        return found

    def take_counts(self) -> tuple[int, int]:
        """Return the downloads that were done and those that failed since this was asked last."""
        with self._counting:
            taken, self._counts = self._counts, (0, 0)
        return taken

    def _count(self, done: int, failed: int) -> None:
        with self._counting:
            self._counts = self._counts[0] + done, self._counts[1] + failed

    @contextlib.contextmanager
    def alone(self, task: Task, name: str) -> Iterator[None]:
        """Keep other processes from changing a model's folder meanwhile. Raises ModelUnavailableError."""
        lock, presence = self._store.lock(task, name), self._presence(task, name)
        with (
            self._failures_explained(task, name),
            alone(lock, self._lease_s, f"{task}/{name}", presence.is_abandoned),
            presence.shown(),
        ):
            yield

    def conversion(self, task: Task, name: str) -> Conversion:
        """Return what makes a model from a checkpoint, to be used while `alone`."""
        return Conversion(self._store, task, name, self._converter, self._presence(task, name))

    def _have(self, task: Task, name: str, key: ModelKey | None = None) -> ModelFiles | None:
        """Download what a model lacks; where one graph is wanted and there, nothing. Return the graph's files."""
        installation = self._installation(task, name)
        files = None
        for _ in range(_ROUNDS):
            is_closed = installation.resume()
            if not is_closed or key is None or self._store.find(key) is None:
                self._complete(task, name)
            installation.settle()
            files = self._store.find(key) if key else None
            if files or not installation.is_open:  # else another process began meanwhile
                break
        return files

    def _complete(self, task: Task, name: str) -> None:
        if checkpoint := checkpoint_name(task, name):
            self._make(task, name, checkpoint)
        else:
            self._from_a_source(task, name, lambda hub, source: self._add_missing(hub, source, task, name))

    def _make(self, task: Task, name: str, checkpoint: str, damaged: ModelType | None = None) -> None:
        """Make what a model lacks, or a damaged tower, from a person's own checkpoint or a hub's."""
        conversion = self.conversion(task, name)
        if not conversion.needs_checkpoint(damaged):
            return
        own = self._checkpoints / checkpoint if self._checkpoints else None
        if not conversion.bring_from_own(own, damaged):
            self._from_a_source(
                task, name, lambda hub, source: conversion.bring(self._checkpoint(hub, source, name), damaged)
            )

    def _add_missing(self, hub: Hub, source: Source, task: Task, name: str) -> None:
        installation = self._installation(task, name)
        interrupted = installation.interrupted.files

        def is_there(file: RemoteFile) -> bool:
            path = installation.folder / file.path
            # What an interrupted installation left may be half a file, where the disk cannot rename at once.
            return interrupted[file.path].is_at(path) if file.path in interrupted else path.exists()

        self._bring(hub, source, task, name, [file for file in self._list(hub, source) if not is_there(file)])

    def _renew(self, hub: Hub, source: Source, key: ModelKey) -> None:
        folder = self._store.model_folder(key.task, key.name)
        scope = [
            file for file in self._list(hub, source) if file.path == CONFIG or file.path.startswith(f"{key.type}/")
        ]
        wrong = [file for file in scope if not file.is_at(folder / file.path)]
        if not wrong:
            raise ModelUnavailableError(
                f"Model '{key.name}' does not load, though its files are those of {hub.address(source)}: "
                f"this server's engine cannot run it, or has too little memory"
            )
        graphs = [file for file in wrong if not file.path.endswith(".json")]
        self._bring(hub, source, key.task, key.name, graphs or wrong, replacing=True)

    def _bring(
        self, hub: Hub, source: Source, task: Task, name: str, files: list[RemoteFile], *, replacing: bool = False
    ) -> None:
        """Download files and put them in place."""
        installation = self._installation(task, name)
        if not files and not installation.is_open:
            return
        start = time.monotonic()
        log.info("Downloading %s/%s from %s: %d files", task, name, hub.address(source), len(files))
        with Staging(self._presence(task, name)) as staging:
            self._obtain(hub, files, staging, name)
            paths = [file.path for file in files]
            installation.install(staging.folder, describe(files, staging.folder), paths if replacing else ())
        log.info("Downloaded %s/%s in %.1f s", task, name, time.monotonic() - start)

    def _obtain(self, hub: Hub, files: list[RemoteFile], staging: Staging, name: str) -> None:
        """Have the files, and no others, in the staging area."""
        with Progress(name) as progress:
            for file in files:
                if file.size is not None:
                    progress.expect(file.path, file.size)
            for file in files:
                staging.obtain(hub, file, progress, self._patience)
        staging.keep_only([file.path for file in files])
        self._count(1, 0)

    def _checkpoint(self, hub: Hub, source: Source, name: str) -> Obtain:
        def obtain(staging: Staging) -> Checkpoint:
            (file,) = self._list(hub, source)
            log.info("Downloading %s from %s", file.path, hub.address(source))
            # What is made of it is about as large.
            require_space(staging.folder, staging.lacking(file) + (file.size or 0))
            self._obtain(hub, [file], staging, name)
            return Checkpoint(staging.folder / file.path, file.url)

        return obtain

    def _list(self, hub: Hub, source: Source) -> list[RemoteFile]:
        failures = 0
        while True:
            try:
                return hub.files(source)
            except DownloadError as error:
                failures += 1
                self._patience.wait(failures, error)

    def _from_a_source(self, task: Task, name: str, work: _Work) -> None:
        failures: list[str] = []
        for source in sources(task, name, self._first):
            hub = self._hub(source.hub)
            if failures:
                log.warning("%s/%s: %s. Trying %s", task, name, failures[-1], hub.title)
            try:
                return work(hub, source)
            except DownloadError as error:
                failures.append(f"{hub.title}: {error}. {error.remedy}")
        folder = self._store.model_folder(task, name)
        if not failures:
            raise ModelUnavailableError(
                f"Model '{name}' is not on this server: {folder} has no such graph, and no hub is known to have it."
            )
        lacking = " is not on this server: it" if self._store.missing(task, name) else ""
        raise ModelUnavailableError(
            f"Model '{name}'{lacking} could not be downloaded. {'. '.join(failures)}. "
            f"Or copy the model into {folder} by hand.{_own_hint(name)}{_alias_hint(task, name)}"
        )

    def _hub(self, name: HubName) -> Hub:
        if name not in self._hubs:
            self._hubs[name] = self._factories[name]()
        return self._hubs[name]

    def _installation(self, task: Task, name: str) -> Installation:
        return Installation(self._store, task, name, self._presence(task, name))

    def _presence(self, task: Task, name: str) -> Presence:
        return self._presences.setdefault((task, name), Presence(self._store.partial(task, name), self._lease_s))

    def _found(self, key: ModelKey) -> ModelFiles:
        if files := self._store.find(key):
            return files
        raise ModelUnavailableError(
            f"Model '{key.name}' has no {key.type}/{GRAPH} where it was downloaded from; it cannot be used for {key}"
        )

    @contextlib.contextmanager
    def _failures_explained(self, task: Task, name: str) -> Iterator[None]:
        """Turn failures of the disk into an error that says what to do, and remember every failure for a while."""
        try:
            try:
                yield
            except OSError as error:
                raise ModelUnavailableError(
                    f"Model '{name}' could not be stored: {explain_disk(error, self._store.folder)}."
                    f"{_alias_hint(task, name)}"
                ) from error
        except ModelUnavailableError as error:
            self._count(0, 1)
            self._failed[task, name] = (time.monotonic() + self._pause_s, error.detail)
            raise

    def _raise_recent_failure(self, task: Task, name: str) -> None:
        # Immich queues a request for every photo; each would wait for the same dead line otherwise.
        until, detail = self._failed.get((task, name), (0.0, ""))
        if time.monotonic() < until:
            raise ModelUnavailableError(detail)


def _own_hint(name: str) -> str:
    if name not in CHINESE_CLIP_DIMENSIONS:
        return ""
    return f" A checkpoint that you have: `immich-ml-compat models convert cn-clip {name} --from FILE.pt`."


def _alias_hint(task: Task, name: str) -> str:
    if task != Task.OCR or name == EMBEDDED_OCR:
        return ""
    return f' To have the built-in model answer for it, set {PREFIX}MODEL_ALIASES={{"{name}": "{EMBEDDED_OCR}"}}'
