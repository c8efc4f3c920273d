"""Aligns the weights that ONNX Runtime wrote beside a graph.

ONNX Runtime writes each weight as it was and, after it, as it packed it, wherever the file happens to end. Its packed
kernels read whole vectors: from an odd place they crash. (Both are needed: it packs the one to find the other.)

    external_data of a tensor: location, offset, length, and prepacked_0 = "kernel|offset;length;checksum"
"""

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .onnx_file import (
    ENTRY_KEY,
    ENTRY_VALUE,
    GRAPH_INITIALIZER,
    MODEL_GRAPH,
    TENSOR_EXTERNAL_DATA,
    Data,
    block,
    fields,
)

_ALIGNMENT = 4096  # a page, so that a mapping can begin there
_PREPACKED = "prepacked_"
_BLOB = re.compile(r"(\d+);(\d+)(;\d+)")


@dataclass(frozen=True)
class _Layout:
    """The new data file while it is written."""

    old: Data
    new: BinaryIO

    def move(self, offset: int, length: int) -> int:
        """Copy bytes to the next aligned place and return where that is. Raises ValueError."""
        if offset + length > len(self.old):
            raise ValueError(f"a weight at byte {offset} has no end")
        place = self.new.seek(-(-self.new.tell() // _ALIGNMENT) * _ALIGNMENT)
        self.new.write(self.old[offset : offset + length])
        return place


def align_weights(graph: Path, data: Path) -> None:
    """Rewrite a graph and its data file. Raises OSError, or IndexError, KeyError or ValueError for another format."""
    text, placed = graph.read_bytes(), data.with_suffix(".placed")
    with data.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as old, placed.open("wb") as new:
        layout = _Layout(old, new)
        written = b"".join(
            block(number, _graph(text, start, stop, layout)) if number == MODEL_GRAPH else text[begin:stop]
            for number, begin, start, stop in fields(text, 0, len(text))
        )
    placed.replace(data)
    graph.write_bytes(written)


def _graph(text: bytes, start: int, stop: int, layout: _Layout) -> bytes:
    return b"".join(
        block(number, _tensor(text, content, end, layout)) if number == GRAPH_INITIALIZER else text[begin:end]
        for number, begin, content, end in fields(text, start, stop)
    )


def _tensor(text: bytes, start: int, stop: int, layout: _Layout) -> bytes:
    kept, entries = [], {}
    for number, begin, content, end in fields(text, start, stop):
        if number == TENSOR_EXTERNAL_DATA:
            entry = {part: text[first:last].decode() for part, _, first, last in fields(text, content, end)}
            entries[entry[ENTRY_KEY]] = entry[ENTRY_VALUE]
        else:
            kept.append(text[begin:end])
    if entries:
        for key, value in _moved(entries, layout).items():
            entry_text = block(ENTRY_KEY, key.encode()) + block(ENTRY_VALUE, value.encode())
            kept.append(block(TENSOR_EXTERNAL_DATA, entry_text))
    return b"".join(kept)


def _moved(entries: dict[str, str], layout: _Layout) -> dict[str, str]:
    """Move a tensor's bytes and return its entries with the new places."""

    def move(blob: re.Match[str]) -> str:
        return f"{layout.move(int(blob[1]), int(blob[2]))};{blob[2]}{blob[3]}"

    placed = entries | {"offset": str(layout.move(int(entries["offset"]), int(entries["length"])))}
    for key, value in entries.items():
        if key.startswith(_PREPACKED):
            kernel, _, blobs = value.rpartition("|")
            if not kernel or not _BLOB.fullmatch(blobs):
                raise ValueError(f"{key} is {value}")
            placed[key] = f"{kernel}|{_BLOB.sub(move, blobs)}"
    return placed
