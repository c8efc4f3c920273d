"""Graphs in half precision, for GPUs: made on first use, tried beside the graph they were made of, and kept on disk.

ONNX Runtime's own converter rewrites the graph. Its weights go from file to file in blocks, so that making a form takes
no more memory than the graph does when it is loaded.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..memory import release
from . import Array, EngineError, Session
from .derived import DATA_SUFFIX, DerivedGraphs, trial
from .free_batch import for_any_number
from .full_precision import RetryingSession
from .onnxruntime import OnnxRuntimeEngine
from .outline import read_outline

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

_MOST_ERROR = 0.02
"""Of the form's outputs, root mean square, by that of the graph's: a cosine of 0.9998. Seen: 0.009."""

_LEAST_ERROR = 1e-3
"""What an output may be wrong by however small it is: probabilities where there is nothing, say."""

_BLOCK = 1 << 22  # bytes of weights that are converted at a time
_ALIGNMENT = 4096  # a page: weights are mapped
_LEAST_IR_VERSION = 4  # the first in which a weight need not be among the inputs


@dataclass(frozen=True)
class InHalf:
    """Loads graphs in half precision, inputs and outputs as they were; a run that overflows is done again in single.

    Graphs of which there is no form that gives the same are loaded as they are.
    """

    engine: OnnxRuntimeEngine
    forms: DerivedGraphs

    def load(self, path: Path) -> Session:
        """Load the graph at `path`, external data beside it included. Raises EngineError."""
        half = self.forms.load(path, partial(self._write, path), self.engine.load)
        if half is None:
            return self.engine.load(path)
        session = RetryingSession(path, half, self.engine)
        session.execution_provider += " (fp16)"
        return session

    def release(self) -> None:
        """Give back the memory that past runs needed."""
        self.engine.release()

    def _write(self, path: Path, target: Path) -> None:
        """Write the form of the graph at `path` to `target`, and try it. Raises EngineError, OSError or ValueError."""
        session = self.engine.load(path)
        inputs = trial(session.inputs)
        expected = session.run(inputs)
        del session  # a large model is not to be in memory twice
        release()
        with for_any_number(path, target.parent, self.engine) as graph:
            write_half(graph, target)
        found = self.engine.load(target).run(inputs)
        if not all(map(is_near, expected, found)):
            raise EngineError("it gives other results in half precision")


def is_near(expected: Array, found: Array) -> bool:
    """Tell whether an output in half precision is what it was in single, but for rounding."""
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return False
    size, error = (float(np.sqrt(np.mean(np.square(each, dtype=np.float64)))) for each in (expected, found - expected))
    return error <= max(_MOST_ERROR * size, _LEAST_ERROR)  # NaN is not


def write_half(path: Path, target: Path) -> None:
    """Convert the graph at `path` to float16, but for inputs, outputs and what cannot be, and write it to `target`.

    What of it is large goes into a file beside `target`. Raises EngineError for a graph that needs no conversion or
    that the converter cannot read, OSError or ValueError.
    """
    from google.protobuf.message import Error as ProtobufError
    from onnx import TensorProto
    from onnx.shape_inference import InferenceError, infer_shapes
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        model = read_outline(path)
        if any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
            raise EngineError("it is in half precision already")
        _make_constant(model)
        model = infer_shapes(model)
        weights = _take_out(model.graph)
        model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    except (AssertionError, AttributeError, InferenceError, ProtobufError, RuntimeError, TypeError) as error:
        raise EngineError(f"it cannot be converted: {error!r}") from error
    del model.graph.value_info[:]  # it knows the stand-ins' shapes
    if weights:
        with target.with_name(target.name + DATA_SUFFIX).open("wb") as data:
            for tensor in model.graph.initializer:
                if tensor.name in weights:
                    _put_back(tensor, weights[tensor.name], path.parent, data)
    target.write_bytes(model.SerializeToString())


def _make_constant(model: "ModelProto") -> None:
    """Take weights out of the inputs, where old exporters put them: the converter would keep those in float32."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _LEAST_IR_VERSION)


def _take_out(graph: "GraphProto") -> "dict[str, TensorProto]":
    """Put empty tensors in the place of weights in other files, and return those by name."""
    from onnx import TensorProto

    weights = {}
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            weights[tensor.name] = TensorProto()
            weights[tensor.name].CopyFrom(tensor)
            tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    return weights


def _put_back(tensor: "TensorProto", weight: "TensorProto", folder: Path, data: BinaryIO) -> None:
    """Write a weight to `data`, in the type that its stand-in `tensor` has now, and have that point there."""
    from onnx import helper
    from onnxruntime.transformers.float16 import convert_np_to_float16

    place = {entry.key: entry.value for entry in weight.external_data}
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(weight.data_type))
    left = math.prod(weight.dims) * kind.itemsize
    start = data.seek(-(-data.tell() // _ALIGNMENT) * _ALIGNMENT)
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise ValueError(f"the weight {weight.name} has no end")
            left -= len(block)
            data.write(
                block if tensor.data_type == weight.data_type else convert_np_to_float16(np.frombuffer(block, kind))
            )
    place = {"location": Path(data.name).name, "offset": str(start), "length": str(data.tell() - start)}
    weight.data_type = tensor.data_type
    tensor.CopyFrom(weight)
    del tensor.external_data[:]
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
