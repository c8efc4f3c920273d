"""A checkpoint's tensors on their way into a graph: described at once, read only when they are written."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint, CheckpointError

Array = NDArray[Any]

_MOST_BYTES = 512 << 20  # of one tensor in float32; the largest official one, ViT-H-14's vocabulary, has 87 MB


class WeightError(Exception):
    """A tensor's numbers cannot be used; the text is the cause and the remedy."""


@dataclass(frozen=True)
class Weight:
    """One tensor: its shape, and how to come by its numbers."""

    shape: tuple[int, ...]
    read: Callable[[], Array]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def transposed(self) -> "Weight":
        """A matrix with rows and columns changed: torch keeps [output, input], a graph multiplies by the other."""
        return Weight(self.shape[::-1], lambda: self.read().T)

    def rows(self, start: int, count: int) -> "Weight":
        """Return a part of the first axis."""
        return Weight((count, *self.shape[1:]), lambda: self.read()[start : start + count])

    def reshaped(self, *shape: int) -> "Weight":
        """Return the same numbers in another shape."""
        return Weight(shape, lambda: self.read().reshape(shape))

    def mapped(self, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> "Weight":
        """Return the same shape with a function of the numbers, computed in float32."""
        return replace(self, read=lambda: function(_float32(self.read())))

    def plus(self, other: "Weight") -> "Weight":
        """Return the sum with a tensor of the same shape, or of one that broadcasts to it."""
        return replace(self, read=lambda: _float32(self.read()) + _float32(other.read()))

    def times(self, other: "Weight") -> "Weight":
        """Return the product with a tensor of the same shape, or of one that broadcasts to it."""
        return replace(self, read=lambda: _float32(self.read()) * _float32(other.read()))


class Weights:
    """The tensors of one checkpoint, by name and by the shape they must have."""

    def __init__(self, checkpoint: Checkpoint, path: Path, model: str) -> None:
        self._checkpoint = checkpoint
        self._path = path
        self._model = model

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Return the shape of a tensor with that many axes. Raises CheckpointError."""
        shape = self._checkpoint.shapes.get(name)
        if shape is None:
            raise self.mismatch(f"it has no {name}")
        if len(shape) != axes or 0 in shape:
            raise self.mismatch(f"{name} is {shape}")
        return shape

    def take(self, name: str, *shape: int) -> Weight:
        """Return a tensor of exactly that shape. Raises CheckpointError."""
        if self.shape(name, len(shape)) != shape:
            raise self.mismatch(f"{name} is {self._checkpoint.shapes[name]} and not {shape}")
        if math.prod(shape) * 4 > _MOST_BYTES:
            raise self.mismatch(f"{name} is {shape}, larger than any of its tensors")
        return Weight(shape, lambda: self._checkpoint.read(name))

    def layers(self, prefix: str) -> int:
        """Return how many layers `prefix.0.…`, `prefix.1.…` there are. Raises CheckpointError for none, or a gap."""
        names = (name for name in self._checkpoint.shapes if name.startswith(f"{prefix}."))
        found = {name.removeprefix(f"{prefix}.").partition(".")[0] for name in names}
        if not found or found != set(map(str, range(len(found)))):
            raise self.mismatch(f"its layers {prefix} are {', '.join(sorted(found)) or 'none'}")
        return len(found)

    def has(self, name: str) -> bool:
        """Tell whether there is a tensor of that name."""
        return name in self._checkpoint.shapes

    def mismatch(self, what: str) -> CheckpointError:
        """Say that this is not the checkpoint of the model."""
        return CheckpointError(
            f"{self._path} is not the checkpoint of {self._model} ({what}): take the official one of this size"
        )


def _float32(array: Array) -> NDArray[np.float32]:
    return array.astype(np.float32)
