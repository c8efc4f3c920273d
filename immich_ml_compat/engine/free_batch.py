"""Graphs that were exported for one item, as graphs for any number: a GPU computes a batch in little more time.

Immich's exporter traces CLIP's image towers with one photo, and all their axes are fixed; insightface's recognisers
take any number of faces and say that they give one embedding.

    the graph → ONNX Runtime computes what is constant → batch_axis.py rewrites it → tried beside the graph
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from ..memory import release
from . import Array, EngineError, EngineMemoryError, TensorInfo
from .batch_axis import free_batch_axis
from .derived import trial
from .onnxruntime import OnnxRuntimeEngine
from .outline import read_outline
from .simpler import REWRITING_ERRORS

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger(__name__)

_PICTURE_AXES = 4  # item, channel, row, column

_MOST_MIXED = 0.01
"""What several items at once may change in an output, by how far the items' own lie apart."""


@contextmanager
def for_any_number(path: Path, folder: Path, engine: OnnxRuntimeEngine) -> Iterator[Path]:
    """Lend the graph at `path` as one for any number of items, in a file under `folder`.

    The graph itself is lent where it is one already, or cannot be made one. Raises EngineMemoryError or OSError.
    """
    with TemporaryDirectory(prefix=".", dir=folder) as written:
        lent, target = path, Path(written) / path.name
        try:
            if _write(path, target, engine):
                lent = target
        except EngineMemoryError:
            raise
        except (EngineError, *REWRITING_ERRORS) as error:
            log.info("%s stays as it is, for one item at a time: %s", path, error)
        yield lent


def _write(path: Path, target: Path, engine: OnnxRuntimeEngine) -> bool:
    """Write a graph for one item as one for any number, or tell that it is no such graph.

    Raises EngineError, OSError or ValueError where it cannot be, or gives other results.
    """
    axis = _one_item_axis(read_outline(path))
    if axis is None:
        return False
    on_cpu = replace(engine, device="cpu", optimized=None)  # a GPU may round more than two items differ by
    single = on_cpu.fold(path, target, {axis: 1} if axis else {})
    items = _three_items(single.inputs)
    expected = [single.run(item) for item in items]
    del single  # a large model is not to be in memory twice
    on_cpu.release()  # a GPU's engine would never ask the CPU's arena to
    release()
    model = read_outline(target)
    free_batch_axis(model)
    target.write_bytes(model.SerializeToString())
    joined = {name: np.concatenate([item[name] for item in items]) for name in items[0]}
    found = on_cpu.load(target).run(joined)
    on_cpu.release()
    if not all(_are_all(outputs, together) for *outputs, together in zip(*expected, found, strict=True)):
        raise EngineError("it gives other results for several items at once")
    return True


def _one_item_axis(model: "ModelProto") -> str | None:
    """Return what a graph for one picture calls its batch axis, "" where it is just 1, or None for another graph.

    So a picture of one size goes in, on an axis that may be free, and something of one item comes out.
    """
    from onnx import TensorProto

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.type.tensor_type for value in model.graph.input if value.name not in weights]
    outputs = [value.type.tensor_type for value in model.graph.output]
    if len(inputs) != 1 or inputs[0].elem_type != TensorProto.FLOAT or len(inputs[0].shape.dim) != _PICTURE_AXES:
        return None
    batch, *sides = inputs[0].shape.dim
    ends = [output.shape.dim[0].dim_value if output.shape.dim else 0 for output in outputs]
    if not all(side.dim_value for side in sides) or batch.dim_value > 1 or set(ends) != {1}:
        return None
    return str(batch.dim_param)


def _three_items(inputs: Sequence[TensorInfo]) -> tuple[dict[str, Array], ...]:
    """Return items that have little in common: noise, a gradient, and the negative of both together."""
    noise = trial(inputs)
    gradient = {
        name: np.linspace(0, 1, values.size, dtype=values.dtype).reshape(values.shape) for name, values in noise.items()
    }
    return noise, gradient, {name: -(values + gradient[name]) for name, values in noise.items()}


def _are_all(expected: Sequence[Array], found: Array) -> bool:
    """Tell whether an output of several items at once is that of each of them, and not something between."""
    joined = np.concatenate(expected)
    if joined.shape != found.shape:
        return False
    apart = min(np.abs(one - other).max() for one, other in combinations(expected, 2))
    return bool(np.abs(found - joined).max() <= _MOST_MIXED * apart)  # NaN is not
