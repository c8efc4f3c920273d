"""Models in memory whose loaders a test gives as it goes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from immich_ml_compat.downloads import Downloader
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.models import Loader, Loaders, Model, Models
from immich_ml_compat.store import ModelKey, ModelStore

ModelT = TypeVar("ModelT")


@dataclass(eq=False)
class FakeModel:
    """A model that does nothing."""

    name: str = ""
    execution_provider: str = "fake"

    def warm(self) -> None:
        """Run once."""


class Shelf:
    """Models in memory over a folder."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        store = ModelStore(folder)
        self._loaders: dict[object, Loader] = {}
        self.models = Models(store, Downloader(store), OnnxRuntimeEngine(), cast(Loaders, self._loaders), clock=clock)

    def load_with(self, key: ModelKey, load: Loader) -> None:
        """Say how models of this kind are loaded."""
        self._loaders[key.task, key.type] = load

    def get(self, key: ModelKey, load: Loader) -> Model:
        """Return a model, loaded so where it is not there yet."""
        self.load_with(key, load)
        with self.models.use(key, object) as model:  # type: ignore[type-var]
            return cast(Model, model)
