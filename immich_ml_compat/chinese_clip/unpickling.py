"""The pickle in a PyTorch checkpoint, run by a machine that knows plain values and tensors and nothing else.

Python's own machine imports and calls whatever a file names. This one imports nothing, has the few instructions that
`torch.save` writes (protocols 2 to 5), and calls only the functions of ours in `tensors.CALLS`. Tensors come out as
descriptions of where their elements lie; no element is read here.

Source: `pickletools` in Python's library.
"""

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from .tensors import CALLS, ELEMENTS, Storage, is_count, storage_of

# A checkpoint of 700 parameters with the state of their optimizer has 0.1 million instructions in 0.5 MB.
_MOST_INSTRUCTIONS = 500_000
_MOST_BYTES = 8 << 20

_MOST_NAME = 100

# Integers of one hash value would make a dictionary slow without end; those of a checkpoint count parameters.
_MOST_KEY = 1 << 31


class Unpickler:
    """Reads the pickles of a stream, one after the other."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.storages: dict[str, Storage] = {}
        """All that the pickles named, by key."""

    def load(self) -> Any:
        """Return the next pickle's object, made of None, bool, int, float, str, tuple, list, dict and Tensor.

        Takes at most some 100 MB and a second or two. Raises ValueError, whose text is the cause, where a pickle asks
        for anything else, is malformed, or is larger than a checkpoint's can be.
        """
        machine = _Machine(self._stream, self.storages)
        try:
            return machine.run()
        except (IndexError, KeyError):
            raise ValueError("its pickle takes what was never put there") from None
        except UnicodeDecodeError:
            raise ValueError("its pickle has text that is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class _Name:
    """A global of Python as a pickle names it; stays a name."""

    text: str


class _Machine:
    """The state of one run: a stack, the stacks below the marks, and the memo."""

    def __init__(self, stream: BinaryIO, storages: dict[str, Storage]) -> None:
        self._stream = stream
        self._storages = storages
        self._left = _MOST_BYTES
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.stack: list[Any] = []

    def run(self) -> Any:
        for _ in range(_MOST_INSTRUCTIONS):
            code = self.take(1)
            if code == pickle.STOP:
                return self.stack.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise ValueError(f"its pickle has the instruction {code!r}, which no checkpoint of tensors needs")
            instruction(self)
        raise ValueError(f"its pickle has more than {_MOST_INSTRUCTIONS} instructions")

    # What is read

    def take(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise ValueError(f"its pickle has more than {_MOST_BYTES >> 20} MB")
        data = self._stream.read(size)
        if len(data) != size:
            raise ValueError("its pickle is cut off")
        return data

    def number(self, format_: str) -> Any:
        return struct.unpack(format_, self.take(struct.calcsize(format_)))[0]

    def text(self, length_format: str) -> str:
        return self.take(self.number(length_format)).decode()

    def long(self) -> int:
        return int.from_bytes(self.take(self.number("<B")), "little", signed=True)

    def line(self) -> str:
        data = self._stream.readline(_MOST_NAME)  # longer ones are not known
        self._left -= len(data)
        return data.decode().removesuffix("\n")

    # What is done to the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values = self.stack
        self.stack = self._below.pop()
        return values

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple([self.stack.pop() for _ in range(count)][::-1])

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"its pickle fills something that is no {kind.__name__}")
        return self.stack[-1]

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top(dict)
        if len(pairs) % 2:
            raise ValueError("its pickle has a dictionary with a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str and not is_count(key, _MOST_KEY):
                raise ValueError("its pickle has a dictionary whose keys are neither text nor small integers")
            target[key] = value

    def build(self) -> None:
        """Drop the attributes of an OrderedDict: `state_dict()` gives its own one, `_metadata`."""
        if type(self.stack.pop()) is not dict:
            raise ValueError("its pickle sets the state of an object")
        self.top(dict)

    def put(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def name(self, module: Any, name: Any) -> None:
        text = f"{module[:_MOST_NAME]} {name[:_MOST_NAME]}" if type(module) is type(name) is str else ""
        if text not in CALLS and text.removeprefix("torch ") not in ELEMENTS:
            raise ValueError(f"its pickle asks for {text.replace(' ', '.')!r}, which no checkpoint of tensors needs")
        self.push(_Name(text))

    def reduce(self) -> None:
        name, arguments = self.last(2)
        call = CALLS.get(name.text) if type(name) is _Name else None
        if call is None or type(arguments) is not tuple:
            raise ValueError("its pickle calls what is no function")
        self.push(call(*arguments))

    def persistent(self) -> None:
        """Push the storage that a persistent ID stands for."""
        identity = self.stack.pop()
        if type(identity) is not tuple or len(identity) not in (5, 6):
            raise ValueError("its pickle refers to something that is no storage")
        word, name, *rest = identity
        kind = name.text.removeprefix("torch ") if type(name) is _Name else ""
        storage = storage_of(word, kind, *rest)
        if self._storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"its pickle describes storage {storage.key[:20]} in two ways")
        self.push(storage)


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], object]] = {
    pickle.PROTO: lambda m: m.take(1),
    pickle.FRAME: lambda m: m.take(8),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(m.long()),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.BINUNICODE: lambda m: m.push(m.text("<I")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.text("<B")),
    pickle.MARK: _Machine.mark,
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(m.last(1)),
    pickle.TUPLE2: lambda m: m.push(m.last(2)),
    pickle.TUPLE3: lambda m: m.push(m.last(3)),
    pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.append(list(m.last(1))),
    pickle.APPENDS: lambda m: m.append(m.since_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items(list(m.last(2))),
    pickle.SETITEMS: lambda m: m.set_items(m.since_mark()),
    pickle.BINPUT: lambda m: m.put(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.put(m.number("<I")),
    pickle.MEMOIZE: _Machine.memoize,
    pickle.BINGET: lambda m: m.get(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.get(m.number("<I")),
    pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.name(*m.last(2)),
    pickle.REDUCE: _Machine.reduce,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.persistent,
}
