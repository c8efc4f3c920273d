"""The models in memory: each loaded once, when first asked for, and shared by all requests."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .catalog import EMBEDDED_OCR, Task
from .engine import Engine, EngineError
from .errors import ModelUnavailableError
from .settings import PREFIX
from .store import ModelFiles, ModelKey, ModelStore

log = logging.getLogger(__name__)

ModelT = TypeVar("ModelT")
Loader = Callable[[ModelFiles, Engine], ModelT]
"""Makes a model ready to use from its files. Raises _LOADING_ERRORS."""

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


class Models:
    """The models in memory. Safe to use from several threads; many waiting requests load a model once."""

    def __init__(self, store: ModelStore, engine: Engine) -> None:
        self._store = store
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
        files = self._store.find(key)
        if files is None:
            raise ModelUnavailableError(self._missing(key))
        for attempt in range(1, _ATTEMPTS + 1):
            start = time.monotonic()
            try:
                model = load(files, self._engine)
            except _LOADING_ERRORS as error:
                log.error("Loading %s failed (attempt %d of %d): %s", key, attempt, _ATTEMPTS, error)
            else:
                log.info("Loaded %s from %s in %.2f s", key, files.graph, time.monotonic() - start)
                return model
        raise ModelUnavailableError(f"Failed to load model '{key.name}'")

    def _missing(self, key: ModelKey) -> str:
        message = f"Model '{key.name}' is not on this server: {self._store.location(key)} does not exist."
        if key.task == Task.OCR and key.name != EMBEDDED_OCR:
            message += (
                f" To have the built-in model answer for it, set {PREFIX}MODEL_ALIASES="
                f'{{"{key.name}": "{EMBEDDED_OCR}"}}'
            )
        return message
