"""Undoes what the stock server up to 3.1 does to a face recogniser, to see whether it did nothing else.

It gives the first input and the first output of `recognition/model.onnx` a batch axis by the name `batch` and
writes the file back. Everything else stays as it was, byte for byte, so the file with the former axes put back
has the published sum again. Which axes those were is not known, but the exporters have few ways to write them.
"""

import hashlib
from collections.abc import Iterator
from itertools import product

from ..engine.onnx_file import MODEL_GRAPH, block, fields

# Field numbers of ONNX's protobuf messages, from a graph down to the first axis of a tensor.
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


def is_published_but_for_batch_axis(content: bytes, sha256: str) -> bool:
    """Tell whether a graph has the given sum once its batch axes are put back as they may have been."""
    try:
        return any(hashlib.sha256(former).hexdigest() == sha256 for former in _former_contents(content))
    except (ValueError, IndexError):
        return False  # no ONNX file, or not rewritten


def _former_contents(content: bytes) -> Iterator[bytes]:
    start, end = _find(content, (MODEL_GRAPH,), 0, len(content))
    graph = content[start:end]
    axes = {field: _find(graph, (field, *_TO_FIRST_AXIS), 0, len(graph)) for field in (_INPUT, _OUTPUT)}
    if any(graph[slice(*axis)] != _BATCH for axis in axes.values()):
        raise ValueError("no batch axis")
    for former_input, former_output in product(_FORMER, _FORMER):
        former = _replaced(graph, (_INPUT, *_TO_FIRST_AXIS), former_input)
        former = _replaced(former, (_OUTPUT, *_TO_FIRST_AXIS), former_output)
        yield _replaced(content, (MODEL_GRAPH,), former)


def _replaced(message: bytes, path: tuple[int, ...], value: bytes) -> bytes:
    """Return a message with the field at `path` replaced, and the lengths of all that holds it."""
    if not path:
        return value
    begin, start, stop = _first(message, path[0], 0, len(message))
    return message[:begin] + block(path[0], _replaced(message[start:stop], path[1:], value)) + message[stop:]


def _find(message: bytes, path: tuple[int, ...], start: int, stop: int) -> tuple[int, int]:
    """Return where the content of the first field at `path` starts and stops. Raises ValueError, IndexError."""
    for number in path:
        _, start, stop = _first(message, number, start, stop)
    return start, stop


def _first(message: bytes, wanted: int, start: int, stop: int) -> tuple[int, int, int]:
    """Return where the first field of that number begins, and where its content starts and stops."""
    for number, *place in fields(message, start, stop):
        if number == wanted:
            begin, start, stop = place
            return begin, start, stop
    raise ValueError(f"no field {wanted}")
