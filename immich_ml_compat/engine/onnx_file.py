"""An ONNX file's bytes, field by field, for what rewrites one without reading its weights.

Format: onnx/onnx.proto3, in protobuf's encoding (https://protobuf.dev/programming-guides/encoding).
"""

import mmap
from collections.abc import Iterator

Data = bytes | mmap.mmap

# Field numbers of onnx.proto3.
MODEL_GRAPH = 7
GRAPH_INITIALIZER = 5
TENSOR_RAW_DATA, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 9, 13, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
EXTERNAL = 1

# Protobuf's wire types.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(data: Data, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field's number, where it begins, and where its content starts and stops. Raises ValueError."""
    while at < stop:
        begin = at
        tag, at = _read_varint(data, at)
        kind = tag & 7
        start = at
        if kind == VARINT:
            _, at = _read_varint(data, at)
        elif kind == BYTES:
            length, start = _read_varint(data, at)
            at = start + length
        elif kind in (FIXED32, FIXED64):
            at += 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {begin}")
        if at > stop:
            raise ValueError(f"a field at byte {begin} has no end")
        yield tag >> 3, begin, start, at


def _read_varint(data: Data, at: int) -> tuple[int, int]:
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


def varint(value: int) -> bytes:
    """Encode a number."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def block(number: int, content: bytes) -> bytes:
    """Encode a field of bytes."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content
