"""The models in memory: loaded once for all who wait, shared by all requests, unloaded when nobody asks.

A model is unloaded after its time to live without use, or earlier where the memory budget needs room, least
recently used first; never while a request uses it, and never when it was preloaded.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from .catalog import ModelType, Task
from .downloads import Downloader
from .engine import Engine, EngineError
from .errors import ModelInUseError, ModelMemoryError, ModelOutputError, ModelUnavailableError
from .memory import release
from .status import ModelFailure, ModelStatus
from .store import ModelFiles, ModelKey, ModelStore
from .timing import LOAD, during

log = logging.getLogger(__name__)


class Model(Protocol):
    """What the models of all tasks have in common."""

    @property
    def execution_provider(self) -> str:
        """What the graph really runs on, by the engine's own name for it."""

    def warm(self) -> None:
        """Run once on nothing in particular: an engine's first run of a graph is its slowest."""


ModelT = TypeVar("ModelT", bound=Model)
Loader = Callable[[ModelFiles, Engine], Model]
"""Makes a model ready to use from its files. Raises _LOADING_ERRORS."""

Loaders = Mapping[tuple[Task, ModelType], Loader]

_ATTEMPTS = 2

# What reading a graph and its configuration raises on files that are not what they should be.
_LOADING_ERRORS = (
    ArithmeticError,
    AttributeError,
    EngineError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Retention:
    """How long models stay."""

    ttl_s: float = 300
    """Seconds without use after which a model is unloaded; 0 or less: never."""

    text_ttl_s: float | None = None
    """The same for CLIP's text towers, which a person waits for; None: as the others."""

    budget_bytes: int | None = None
    """The most that all models together may take, by their files' sizes; None: no limit."""

    def ttl(self, key: ModelKey) -> float:
        """Return the seconds that apply to a model."""
        return self.text_ttl_s if key.type == ModelType.TEXTUAL and self.text_ttl_s is not None else self.ttl_s


@dataclass(eq=False)
class _Slot:
    """One model's place: empty, being loaded or loaded."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    model: Model | None = None
    size: int = 0
    users: int = 0
    last_used: float = 0.0
    last_run: float | None = None
    """The time of day of the last use that ended well."""

    loading_since: float | None = None
    stays: bool = False
    failure: tuple[float, ModelUnavailableError] | None = None
    """When loading last failed, and what those get who were waiting for it."""


class Models:
    """The models in memory. Safe to use from several threads."""

    def __init__(
        self,
        store: ModelStore,
        downloader: Downloader,
        engine: Engine,
        loaders: Loaders,
        retention: Retention = Retention(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._downloader = downloader
        self._engine = engine
        self._loaders = loaders
        self._retention = retention
        self._clock = clock
        self._slots: dict[ModelKey, _Slot] = {}
        self._lock = threading.Lock()
        self._failures: dict[ModelKey, ModelFailure] = {}
        self._fetching = 0
        self._released = clock()

    @contextmanager
    def use(self, key: ModelKey, kind: type[ModelT]) -> Iterator[ModelT]:
        """Lend a model of that class, loading it if need be; it stays at least until it is given back.

        Raises ModelUnavailableError.
        """
        with self._borrow(key) as slot:
            if not isinstance(slot.model, kind):
                raise TypeError(f"{key} is a {type(slot.model).__name__}, not a {kind.__name__}")
            with self._noting(key, slot):
                yield slot.model

    @contextmanager
    def _noting(self, key: ModelKey, slot: _Slot) -> Iterator[None]:
        """Remember how a use of a model ended."""
        try:
            yield
        except (EngineError, ModelOutputError) as error:
            self._note_failure(key, str(error))
            raise
        slot.last_run = time.time()

    @contextmanager
    def _borrow(self, key: ModelKey) -> Iterator[_Slot]:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            slot.users += 1
        came = self._clock()
        try:
            with during(LOAD), slot.lock:
                if slot.failure is not None and slot.failure[0] > came:
                    raise type(slot.failure[1])(slot.failure[1].detail)
                if slot.model is None:
                    self._load_for_all(key, slot)
            yield slot
        finally:
            with self._lock:
                slot.users -= 1
                slot.last_used = self._clock()
                if slot.model is None and not slot.users:  # it did not load: the next request tries anew
                    self._slots.pop(key, None)

    def fetch(self, keys: Iterable[ModelKey]) -> None:
        """Load those of the models that are nowhere on disk. Raises ModelUnavailableError."""
        for key in keys:
            if (slot := self._slots.get(key)) is not None and slot.model is not None:
                continue
            if self._store.find(key) is None:
                with self._counted(), self._borrow(key):
                    pass

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count who waits in `fetch`."""
        with self._lock:
            self._fetching += 1
        try:
            yield
        finally:
            with self._lock:
                self._fetching -= 1

    def preload(self, key: ModelKey) -> None:
        """Load and warm a model, and let it stay for ever. Raises ModelUnavailableError."""
        with self._borrow(key) as slot:
            assert slot.model is not None
            with self._noting(key, slot):
                slot.model.warm()
            slot.stays = True

    def unload(self, key: ModelKey) -> None:
        """Unload a model, also one that was to stay; one that is not loaded is none. Raises ModelInUseError."""
        with self._lock:
            if (slot := self._slots.get(key)) is None:
                return
            if slot.users:
                raise ModelInUseError(f"Model '{key.name}' is in use; unload it when its requests are done")
            self._unload([key], "asked to")
        self.release()

    def execution_provider(self, key: ModelKey) -> str:
        """Return what a model runs on, loading it if need be. Raises ModelUnavailableError."""
        with self._borrow(key) as slot:
            assert slot.model is not None
            return slot.model.execution_provider

    def unload_expired(self) -> int:
        """Unload the models whose time to live is over; return how many are left, those in use included."""
        now = self._clock()
        with self._lock:
            expired = [
                key
                for key, slot in self._slots.items()
                if not slot.users and not slot.stays and 0 < self._retention.ttl(key) <= now - slot.last_used
            ]
            self._unload(expired, "not used for a while")
            left = len(self._slots)
        if expired:
            self.release()
        return left

    def release(self) -> None:
        """Give memory that nothing needs back to the system."""
        self._released = self._clock()
        self._engine.release()
        release()

    def release_is_due(self, rest_s: float) -> bool:
        """Tell whether a model has had nothing to do for so long, and what its runs took was not given back since."""
        now = self._clock()
        with self._lock:
            return any(
                not slot.users and slot.last_used > self._released and now - slot.last_used >= rest_s
                for slot in self._slots.values()
            )

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return what is in memory."""
        with self._lock:
            return tuple(
                ModelStatus(
                    task=key.task,
                    type=key.type,
                    name=key.name,
                    provider=slot.model.execution_provider,
                    bytes=slot.size,
                    in_use=slot.users,
                    stays=slot.stays,
                    last_run=slot.last_run,
                )
                for key, slot in self._slots.items()
                if slot.model is not None
            )

    def failures(self) -> tuple[ModelFailure, ...]:
        """Return the last failure of each model that ever had one."""
        return tuple(self._failures.copy().values())

    def _note_failure(self, key: ModelKey, detail: str) -> None:
        self._failures[key] = ModelFailure(key.task, key.type, key.name, time.time(), _plain(detail))

    def fetching(self) -> int:
        """Return how many are in `fetch`: they wait for a download, or for what came to be loaded."""
        return self._fetching

    def loading_seconds(self) -> float:
        """Return for how long the slowest load that is running has been at it; 0 where none is."""
        with self._lock:
            starts = [slot.loading_since for slot in self._slots.values() if slot.loading_since is not None]
        return self._clock() - min(starts) if starts else 0.0

    def _load_for_all(self, key: ModelKey, slot: _Slot) -> None:
        try:
            self._load(key, slot)
        except ModelUnavailableError as error:
            slot.failure = self._clock(), error
            self._note_failure(key, error.detail)
            raise

    def _load(self, key: ModelKey, slot: _Slot) -> None:
        files = self._store.find(key) or self._downloader.fetch(key)
        self._make_room(slot, files.size())
        failed = ModelUnavailableError
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                slot.model = self._load_once(key, slot, files)
            except _LOADING_ERRORS as error:
                log.error("Loading %s failed (attempt %d of %d): %s", key, attempt, _ATTEMPTS, error)
                # Where memory is short the files are not to blame.
                failed = ModelMemoryError if isinstance(error, MemoryError) else ModelUnavailableError
                if attempt < _ATTEMPTS and failed is not ModelMemoryError:
                    files = self._repair(key, files)
            else:
                return
        raise failed(f"Failed to load model '{key.name}'")

    def _load_once(self, key: ModelKey, slot: _Slot, files: ModelFiles) -> Model:
        slot.loading_since = start = self._clock()
        try:
            model = self._loaders[key.task, key.type](files, self._engine)
        finally:
            slot.loading_since = None
        seconds = self._clock() - start
        log.info("Loaded %s from %s on %s in %.2f s", key, files.graph, model.execution_provider, seconds)
        return model

    def _make_room(self, wanting: _Slot, size: int) -> None:
        """Unload what was used least recently until the wanted model fits the budget, as far as others let go."""
        with self._lock:
            wanting.size = size  # from now on it counts, also for another that is loaded meanwhile
            if self._retention.budget_bytes is None:
                return
            excess = sum(slot.size for slot in self._slots.values()) - self._retention.budget_bytes
            evicted: list[ModelKey] = []
            for key, slot in sorted(self._slots.items(), key=lambda item: item[1].last_used):
                if excess > 0 and slot.model is not None and not slot.users and not slot.stays:
                    evicted.append(key)
                    excess -= slot.size
            self._unload(evicted, "the memory budget needs room")
        self.release()

    def _unload(self, keys: list[ModelKey], reason: str) -> None:
        for key in keys:
            if self._slots.pop(key).model is not None:
                log.info("Unloaded %s: %s", key, reason)

    def _repair(self, key: ModelKey, files: ModelFiles) -> ModelFiles:
        try:
            return self._downloader.replace(key)
        except ModelUnavailableError as error:
            log.error("%s", error.detail)
            return files


def _plain(text: str) -> str:
    """Return a text without what only a path may hold, and no JSON."""
    return text.encode(errors="replace").decode()
