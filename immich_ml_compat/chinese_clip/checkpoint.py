"""A PyTorch checkpoint, read without torch: the names and shapes of its tensors, and one tensor at a time.

What the file says of itself is not believed: containers.py, and unpickling.py for the pickle in it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .containers import OFFICIAL, CheckpointError, Contents, File, read_contents
from .tensors import ELEMENTS, Tensor

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint"]


class Checkpoint:
    """The tensors of a checkpoint's state dict; an optimizer's and whatever else is there do not count."""

    def __init__(self, file: File, contents: Contents) -> None:
        """Raises CheckpointError where there is no tensor."""
        self._file = file
        self._contents = contents
        self._tensors = _state_dict(contents.root)
        if not self._tensors:
            raise file.error("it holds no tensors by name", OFFICIAL)
        self.shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(
            {name: tensor.shape for name, tensor in self._tensors.items()}
        )
        """By name, without the `module.` that training on several GPUs puts before all of them."""

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor: C-contiguous, in native byte order, of the type it was stored in; bfloat16 as float32.

        Takes the memory of what it returns; twice that where the elements lie in another order in the file.
        Raises CheckpointError where there is no such tensor, or its part of the file is damaged.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self._file.error(f"it has no tensor {name!r}", "Take the checkpoint of the model you named")
        dtype = ELEMENTS[tensor.storage.kind]
        size = dtype.itemsize
        extent = self._contents.extents[tensor.storage.key]
        with _reading(self._file):
            taken = self._file.take(extent, tensor.offset * size, tensor.span * size)
        elements = np.ndarray(
            tensor.shape,
            dtype.newbyteorder(self._contents.byte_order),
            taken,
            strides=[stride * size for stride in tensor.strides],
        )
        return _as_stored(np.asarray(elements, dtype, order="C"), tensor.storage.kind)


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a checkpoint for reading.

    Raises CheckpointError for a file that is none, is damaged, or asks for more than tensors; OSError where it cannot
    be opened.
    """
    with File(path) as file:
        with _reading(file):
            contents = read_contents(file)
        yield Checkpoint(file, contents)


@contextmanager
def _reading(file: File) -> Iterator[None]:
    """Tell a disk that does not give this file from one that takes nothing: that one gets what is made of it."""
    try:
        yield
    except OSError as error:
        raise file.error(f"it cannot be read ({error.strerror or error})", "Check the disk it lies on") from error


def _state_dict(root: Any) -> dict[str, Tensor]:
    """Return the tensors by name: those of `state_dict` where there is one, else of the root itself."""
    found = root.get("state_dict", root) if type(root) is dict else None
    items = found.items() if type(found) is dict else ()
    tensors = {name: value for name, value in items if type(name) is str and type(value) is Tensor}
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in tensors.items()}


def _as_stored(bits: NDArray[Any], kind: str) -> NDArray[Any]:
    """Return elements of the type that a storage's bits stand for."""
    if kind == "BoolStorage":
        return bits.astype(np.bool_)
    if kind == "BFloat16Storage":
        wide = bits.astype(np.uint32)
        wide <<= 16  # bfloat16 is the upper half of float32
        return wide.view(np.float32)
    return bits
