"""The models in memory: each loaded once, when first asked for, and shared by all requests."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .downloads import Downloader
from .engine import Engine, EngineError
from .errors import ModelUnavailableError
from .store import ModelFiles, ModelKey, ModelStore

log = logging.getLogger(__name__)

ModelT = TypeVar("ModelT")
Loader = Callable[[ModelFiles, Engine], ModelT]
"""Makes a model ready to use from its files. Raises EngineError, OSError or ValueError."""

_ATTEMPTS = 2


class Models:
    """The models in memory. Safe to use from several threads; many waiting requests load a model once."""

    def __init__(self, store: ModelStore, engine: Engine, downloader: Downloader) -> None:
        self._store = store
        self._downloader = downloader
        self._engine = engine
        self._loaded: dict[ModelKey, Any] = {}
        self._locks: dict[ModelKey, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: ModelKey, load: Loader[ModelT]) -> ModelT:
        """Return the model, loading it if need be. Raises ModelUnavailableError."""
        with self._lock:
            if key in self._loaded:
                return cast(ModelT, self._loaded[key])
            loading = self._locks.setdefault(key, threading.Lock())
        with loading:
            if key not in self._loaded:
                self._loaded[key] = self._load(key, load)
            return cast(ModelT, self._loaded[key])

    def _load(self, key: ModelKey, load: Loader[ModelT]) -> ModelT:
        files = self._store.find(key) or self._downloader.fetch(key)
        for attempt in range(1, _ATTEMPTS + 1):
            start = time.monotonic()
            try:
                model = load(files, self._engine)
            except (EngineError, OSError, ValueError, KeyError) as error:
                log.error("Loading %s failed (attempt %d of %d): %s", key, attempt, _ATTEMPTS, error)
                if attempt < _ATTEMPTS:
                    files = self._repair(key, files)
            else:
                log.info("Loaded %s from %s in %.2f s", key, files.graph, time.monotonic() - start)
                return model
        raise ModelUnavailableError(f"Failed to load model '{key.name}'")

    def _repair(self, key: ModelKey, files: ModelFiles) -> ModelFiles:
        try:
            return self._downloader.replace(key)
        except ModelUnavailableError as error:
            log.error("%s", error.detail)
            return files
