"""An ONNX graph's outline: the file without its large weights, which it points at where they are.

OpenVINO reads the weights inside a graph into memory, and keeps them beside those that it packs for the CPU: a graph
takes twice its size. Weights in another file it maps, and their pages can be given back once they are packed. So it
gets a small file that says of each weight where it stands in the graph's own. What rewrites a graph
needs no more than that.
"""

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .onnx_file import (
    ENTRY_KEY,
    ENTRY_VALUE,
    EXTERNAL,
    GRAPH_INITIALIZER,
    MODEL_GRAPH,
    TENSOR_DATA_LOCATION,
    TENSOR_EXTERNAL_DATA,
    TENSOR_RAW_DATA,
    VARINT,
    block,
    fields,
    varint,
)

if TYPE_CHECKING:
    from onnx import ModelProto

_LARGE = 1 << 12
"""Smaller weights stay in the outline (bytes): some are shapes, which are needed at once."""

_WORTH_IT = 1 << 20
"""Graphs of which fewer bytes can be left out are loaded as they are."""


@contextmanager
def outline(path: Path) -> Iterator[Path]:
    """Lend a file to load in place of the graph at `path`; the graph itself where that would not help.

    It lies in the graph's folder, for OpenVINO takes weights from nowhere else; where that is read-only, or the graph
    a link to somewhere else, the graph itself is lent.
    """
    try:
        text = None if path.is_symlink() else without_weights(path)
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


def read_outline(path: Path) -> "ModelProto":
    """Read a graph without its large weights, but for a link: what it points at lies in another folder.

    Raises OSError, or ValueError for what is no graph.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        text = None if path.is_symlink() else without_weights(path)
        model: ModelProto = ModelProto.FromString(text or path.read_bytes())
    except (DecodeError, IndexError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return model


def without_weights(path: Path) -> bytes | None:
    """Return the outline's content, which is to lie in the graph's folder, or None for a graph with few large weights.

    Raises OSError, or IndexError or ValueError for what is no graph.
    """
    if path.stat().st_size < _WORTH_IT:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        written = b"".join(
            block(number, _graph(data, start, stop, path.name)) if number == MODEL_GRAPH else data[begin:stop]
            for number, begin, start, stop in fields(data, 0, len(data))
        )
        return written if len(data) - len(written) >= _WORTH_IT else None


def _graph(data: mmap.mmap, start: int, stop: int, location: str) -> bytes:
    return b"".join(
        block(number, _tensor(data, start, stop, location)) if number == GRAPH_INITIALIZER else data[begin:stop]
        for number, begin, start, stop in fields(data, start, stop)
    )


def _tensor(data: mmap.mmap, start: int, stop: int, location: str) -> bytes:
    parts = []
    for number, begin, content, end in fields(data, start, stop):
        if number == TENSOR_RAW_DATA and end - content >= _LARGE:
            for key, value in (("location", location), ("offset", str(content)), ("length", str(end - content))):
                entry = block(ENTRY_KEY, key.encode()) + block(ENTRY_VALUE, value.encode())
                parts.append(block(TENSOR_EXTERNAL_DATA, entry))
            parts.append(varint(TENSOR_DATA_LOCATION << 3 | VARINT) + varint(EXTERNAL))
        else:
            parts.append(data[begin:end])
    return b"".join(parts)
