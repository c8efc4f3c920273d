"""Undoes what the stock server up to 3.1 does to a face recogniser, to see whether it did nothing else.

It gives the first input and the first output of `recognition/model.onnx` a batch axis by the name `batch` and
writes the file back. Everything else stays as it was, byte for byte, so the file with the former axes put back
has the published sum again. Which axes those were is not known, but the exporters have few ways to write them.
"""

import hashlib
from collections.abc import Iterator
from itertools import product

# Field numbers of ONNX's protobuf messages, from a model down to the first axis of a tensor.
_GRAPH = 7
_INPUT, _OUTPUT = 11, 12
_TO_FIRST_AXIS = (2, 1, 2, 1)  # type, tensor_type, shape, dim
_BATCH = b"\x12\x05batch"  # dim_param = "batch"
_FORMER = (
    b"\x08\x01",  # dim_value = 1
    b"\x12\x04None",
    b"\x12\x01?",
    b"\x12\x01N",
    b"\x12\x0abatch_size",
    b"",
    _BATCH,
)
_LENGTH_DELIMITED = 2


def is_published_but_for_batch_axis(content: bytes, sha256: str) -> bool:
    """Tell whether a graph has the given sum once its batch axes are put back as they may have been."""
    try:
        return any(hashlib.sha256(former).hexdigest() == sha256 for former in _former_contents(content))
    except (ValueError, IndexError):
        return False  # no ONNX file, or not rewritten


def _former_contents(content: bytes) -> Iterator[bytes]:
    start, end = _find(content, (_GRAPH,), 0, len(content))
    graph = content[start:end]
    axes = {field: _find(graph, (field, *_TO_FIRST_AXIS), 0, len(graph)) for field in (_INPUT, _OUTPUT)}
    if any(graph[slice(*axis)] != _BATCH for axis in axes.values()):
        raise ValueError("no batch axis")
    for former_input, former_output in product(_FORMER, _FORMER):
        former = _replaced(graph, (_INPUT, *_TO_FIRST_AXIS), former_input)
        former = _replaced(former, (_OUTPUT, *_TO_FIRST_AXIS), former_output)
        yield _replaced(content, (_GRAPH,), former)


def _replaced(message: bytes, path: tuple[int, ...], value: bytes) -> bytes:
    """Return a message with the field at `path` replaced, and the lengths of all that holds it."""
    if not path:
        return value
    start, end = _find(message, path[:1], 0, len(message))
    inner = _replaced(message[start:end], path[1:], value)
    length = len(_varint(end - start))
    return b"".join((message[: start - length], _varint(len(inner)), inner, message[end:]))


def _find(message: bytes, path: tuple[int, ...], start: int, end: int) -> tuple[int, int]:
    """Return where the content of the first field at `path` begins and ends. Raises ValueError, IndexError."""
    if not path:
        return start, end
    position = start
    while position < end:
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, position = _read_varint(message, position)
            if tag >> 3 == path[0]:
                return _find(message, path[1:], position, position + length)
            position += length
        elif kind == 0:
            _, position = _read_varint(message, position)
        else:
            position += {1: 8, 5: 4}[kind] if kind in (1, 5) else end
    raise ValueError(f"no field {path[0]}")


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
