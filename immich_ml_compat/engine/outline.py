"""An ONNX graph's outline: the file without its large weights, which it points at where they are.

OpenVINO reads the weights inside a graph into memory, and keeps them beside those that it packs for the CPU: a graph
takes twice its size. Weights in another file it maps, and their pages can be given back once they are packed. So it
gets a small file that says of each weight where it stands in the graph's own.

Format: onnx/onnx.proto3, in protobuf's encoding (https://protobuf.dev/programming-guides/encoding).
"""

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LARGE = 1 << 12
"""Smaller weights stay in the outline (bytes): some are shapes, which are needed at once."""

_WORTH_IT = 1 << 20
"""Graphs of which fewer bytes can be left out are loaded as they are."""

# Field numbers of onnx.proto3.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 9, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = 1

# Protobuf's wire types.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@contextmanager
def outline(path: Path) -> Iterator[Path]:
    """Lend a file to load in place of the graph at `path`; the graph itself where that would not help.

    It lies in the graph's folder, for OpenVINO takes weights from nowhere else; where that is read-only, or the graph
    a link to somewhere else, the graph itself is lent.
    """
    try:
        text = None if path.is_symlink() else _write(path)
    except (OSError, IndexError, ValueError):
        text = None  # the engine says better what is wrong with it
    if text is None:
        yield path
        return
    try:
        file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)  # noqa: SIM115
    except OSError:
        yield path
        return
    with file:
        file.write(text)
        file.flush()
        yield Path(file.name)


def _write(path: Path) -> bytes | None:
    """Return the outline's content, or None for a graph with few large weights.

    Raises OSError, or IndexError or ValueError for what is no graph.
    """
    if path.stat().st_size < _WORTH_IT:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        written = b"".join(
            _block(number, _graph(data, start, stop, path.name)) if number == _MODEL_GRAPH else data[begin:stop]
            for number, begin, start, stop in _fields(data, 0, len(data))
        )
        return written if len(data) - len(written) >= _WORTH_IT else None


def _graph(data: mmap.mmap, start: int, stop: int, location: str) -> bytes:
    return b"".join(
        _block(number, _tensor(data, start, stop, location)) if number == _GRAPH_INITIALIZER else data[begin:stop]
        for number, begin, start, stop in _fields(data, start, stop)
    )


def _tensor(data: mmap.mmap, start: int, stop: int, location: str) -> bytes:
    parts = []
    for number, begin, content, end in _fields(data, start, stop):
        if number == _TENSOR_RAW_DATA and end - content >= _LARGE:
            for key, value in (("location", location), ("offset", str(content)), ("length", str(end - content))):
                entry = _block(_ENTRY_KEY, key.encode()) + _block(_ENTRY_VALUE, value.encode())
                parts.append(_block(_TENSOR_EXTERNAL_DATA, entry))
            parts.append(_varint(_TENSOR_DATA_LOCATION << 3 | _VARINT) + _varint(_EXTERNAL))
        else:
            parts.append(data[begin:end])
    return b"".join(parts)


def _fields(data: mmap.mmap, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field's number, where it begins, and where its content starts and stops. Raises ValueError."""
    while at < stop:
        begin = at
        tag, at = _read_varint(data, at)
        kind = tag & 7
        start = at
        if kind == _VARINT:
            _, at = _read_varint(data, at)
        elif kind == _BYTES:
            length, start = _read_varint(data, at)
            at = start + length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {begin}")
        if at > stop:
            raise ValueError(f"a field at byte {begin} has no end")
        yield tag >> 3, begin, start, at


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number at byte {at} has no end")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _block(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content
