"""What the pickle of a PyTorch checkpoint can describe: storages, tensors in them, and the few calls that make them.

Source: `torch/_utils.py` and `torch/serialization.py` of PyTorch 1.6 to 2.13.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_MOST_ELEMENTS = 1 << 48
_MOST_DIMENSIONS = 32

ELEMENTS: dict[str, np.dtype[Any]] = {
    "BFloat16Storage": np.dtype(np.uint16),  # its bits
    "BoolStorage": np.dtype(np.uint8),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "ShortStorage": np.dtype(np.int16),
}
"""How an element of each of torch's storages lies in a file."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in the file, by the key it has there."""

    key: str
    """Digits."""

    kind: str
    """A key of ELEMENTS."""

    numel: int

    @property
    def nbytes(self) -> int:
        """Return the bytes that this should take in the file, which may be another matter."""
        return self.numel * ELEMENTS[self.kind].itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's place in a storage; what it covers lies inside that and is not more than it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements, as many as `shape` has; 0 where a dimension has one element or none."""

    @property
    def span(self) -> int:
        """Return the number of elements from the first to the last."""
        return _span(self.shape, self.strides)


def is_count(value: Any, limit: int = _MOST_ELEMENTS) -> bool:
    """Tell whether a value of a pickle is an integer from 0 up to a limit."""
    return type(value) is int and 0 <= value < limit


def storage_of(word: Any, kind: str, key: Any, location: Any, numel: Any, view: Any = None) -> Storage:
    """Return what a persistent ID stands for. Raises ValueError, whose text is the cause."""
    # The devices that `location` names mean nothing here; `view` is what torch before 0.4 had.
    if word != "storage" or kind not in ELEMENTS or type(location) is not str or view is not None:
        raise ValueError("its pickle refers to something that is no storage")
    if type(key) is not str or not key.isdecimal() or not is_count(numel):
        raise ValueError("its pickle refers to a storage that cannot be")
    return Storage(key, kind, numel)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    """`collections.OrderedDict`; what is in it comes later."""
    if arguments:
        raise ValueError("its pickle makes an OrderedDict of something")
    return {}


def _tensor(*arguments: Any) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`; a seventh argument would change the elements' values."""
    if len(arguments) != 6 or type(arguments[0]) is not Storage:
        raise ValueError("its pickle has a tensor without a storage, or with more than elements")
    storage, offset, shape, strides = arguments[:4]
    if not _fit(offset, shape, strides):
        raise ValueError("its pickle has a tensor whose dimensions cannot be")
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    span = _span(shape, strides)
    # A stride of 0 repeats elements: a few bytes of a file would become any number in memory.
    if span and (offset + span > storage.numel or math.prod(shape) > span):
        raise ValueError(f"its pickle has a tensor that covers more than its storage {storage.key[:20]}")
    return Tensor(storage, offset, shape, strides)


def _fit(offset: Any, shape: Any, strides: Any) -> bool:
    if type(shape) is not tuple or type(strides) is not tuple or not len(shape) == len(strides) <= _MOST_DIMENSIONS:
        return False
    if not all(is_count(number) for number in (offset, *shape, *strides)):
        return False
    return is_count(math.prod(max(size, 1) for size in shape))


def _parameter(*arguments: Any) -> Tensor:
    """`torch._utils._rebuild_parameter`."""
    if len(arguments) != 3 or type(arguments[0]) is not Tensor:
        raise ValueError("its pickle has a parameter that is no tensor")
    return arguments[0]


CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
"""What a pickle may call, by module and name. Arguments may be anything a pickle can hold; ValueError refuses them."""
