"""Less than single precision, with a way back: a run that overflows is done again in single precision."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import Array, Engine, EngineError, EngineMemoryError, OneByOne, Session, TensorInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryInFull:
    """Loads graphs into `reduced`, or into `full` where that cannot be.

    Whichever gives something not finite is loaded into `full` as well, and run there.
    """

    reduced: Engine
    full: Engine

    def load(self, path: Path) -> Session:
        """Load the graph at `path`, external data beside it included. Raises EngineError."""
        try:
            return RetryingSession(path, self.reduced.load(path), self.full)
        except EngineMemoryError:
            raise  # single precision takes more
        except EngineError as error:
            log.warning("Loaded in single precision instead: %s", error)
            return self.full.load(path)

    def release(self) -> None:
        """Give back the memory that past runs needed."""
        self.reduced.release()
        self.full.release()


class RetryingSession(OneByOne):
    """One graph in reduced precision, and in single precision from the first run that needs it."""

    def __init__(self, path: Path, reduced: Session, engine: Engine) -> None:
        self._path = path
        self._reduced = reduced
        self._engine = engine
        self._full: Session | None = None
        self._lock = threading.Lock()
        self.inputs: Sequence[TensorInfo] = reduced.inputs
        self.outputs: Sequence[TensorInfo] = reduced.outputs
        self.execution_provider = reduced.execution_provider
        self.metadata = reduced.metadata

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run the graph, a second time where the outputs are not finite. Raises EngineError."""
        outputs = self._reduced.run(inputs)
        return outputs if all(map(is_finite, outputs)) else self._in_full().run(inputs)

    def _in_full(self) -> Session:
        with self._lock:
            if self._full is None:
                log.warning(
                    "%s overflows on %s: such runs are done again in single precision",
                    self._path,
                    self.execution_provider,
                )
                self._full = self._engine.load(self._path)
            return self._full


def is_finite(values: Array) -> bool:
    """Tell whether a tensor holds no NaN and no infinity, without another one of its size."""
    if values.dtype.kind != "f" or not values.size:
        return True
    return bool(np.isfinite(values.max()) and np.isfinite(values.min()))
