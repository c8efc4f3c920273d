"""What a task asks of an execution engine: load a graph, run it.

Tasks see only these two protocols; the modules beside this file implement them, each over one library.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""A dense tensor of any dtype, as the graph takes or gives it."""


class EngineError(Exception):
    """A graph could not be loaded or run; the message names the file and the engine's own cause."""


class EngineMemoryError(EngineError, MemoryError):
    """The engine had too little memory: alone, or later, it may have enough."""


# What ONNX Runtime, CUDA, OpenVINO and the C++ library say when there is no memory.
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate memory", "out of memory", "not enough memory")


def engine_error(path: Path, cause: str) -> EngineError:
    """Return the error for what an engine says of the graph at `path`."""
    kind = EngineMemoryError if any(words in cause.lower() for words in _OUT_OF_MEMORY) else EngineError
    return kind(f"{path}: {' '.join(cause.split())}")


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a graph: its name, numpy dtype and shape (None where an axis is free)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class Session(Protocol):
    """A loaded graph. `run` may be called from several threads at once."""

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """The graph's inputs, in its own order."""

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """The graph's outputs, in its own order."""

    @property
    def execution_provider(self) -> str:
        """What the graph really runs on, by the engine's own name for it."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The graph's custom metadata, such as `character` of a PP-OCR recogniser."""

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run the graph once and return its outputs in order. Raises EngineError."""

    def run_many(self, items: Iterable[Mapping[str, Array]], expected: int = 1) -> Iterator[list[Array]]:
        """Run the graph on each item, side by side where the engine can, and yield the outputs in the items' order.

        Items are taken as they are needed; `expected` is how many there will be, or about. Raises EngineError.
        """

    @property
    def spare_threads(self) -> int:
        """On so many threads, at least one, may work be spread now that comes before the graph."""


class OneByOne(ABC):
    """What a session is like that runs one thing at a time."""

    spare_threads = 1

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """As a session's."""

    def run_many(self, items: Iterable[Mapping[str, Array]], expected: int = 1) -> Iterator[list[Array]]:
        """Run the graph on each item and yield the outputs in the items' order. Raises EngineError."""
        return map(self.run, items)


class Engine(Protocol):
    """Loads ONNX graphs on one device."""

    def load(self, path: Path) -> Session:
        """Load the graph at `path`, external data beside it included. Raises EngineError."""

    def release(self) -> None:
        """Give back the memory that past runs needed, as far as the engine can."""
