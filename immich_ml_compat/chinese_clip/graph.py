"""An ONNX graph in the making: nodes, and weights that are read only when the file is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, external_data_helper, helper

from .containers import OFFICIAL
from .weights import Array, Weight, WeightError

OPSET = 17  # the first with LayerNormalization
_IR_VERSION = 8

# Protobuf ends at 2 GB, and readers need some of it for themselves.
_EXTERNAL_ABOVE = 1_500_000_000
_ALIGNMENT = 4096  # a page: engines map external data into memory
_LEAST_EXTERNAL = 1024  # bytes; shapes and scalars have to be in the graph itself

Progress = Callable[[int], None]
"""Is told the bytes that were written since it was last called."""


class Graph:
    """Collects one graph. Methods that add a node return the name of its output."""

    def __init__(self, *, half: bool) -> None:
        """`half` keeps and computes everything in float16, from the input to the last projection."""
        self._half = half
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, Weight] = {}
        self._constants: dict[str, Array] = {}
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, weight: Weight) -> str:
        """Add a tensor under a name of its own."""
        if name in self._weights:
            raise ValueError(f"two weights are named {name}")
        self._weights[name] = weight
        return name

    def integers(self, *values: int) -> str:
        """Return the name of an int64 vector: axes, shapes."""
        return self._constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Return the name of an int64 scalar."""
        return self._constant(f"integer_{value}", np.array(value, np.int64))

    def token(self, value: int) -> str:
        """Return the name of an int32 scalar, to compare tokens with."""
        return self._constant(f"token_{value}", np.array(value, np.int32))

    def number(self, value: float) -> str:
        """Return the name of a scalar in the graph's own precision."""
        return self._constant(f"number_{value!r}", np.array(value, np.float16 if self._half else np.float32))

    def images(self, name: str, size: int) -> str:
        """Declare the input float32 [batch, 3, size, size]; return it in the graph's own precision."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, size, size]))
        return self.cast(name) if self._half else name

    def tokens(self, name: str) -> str:
        """Declare the input int32 [batch, sequence], which is what Immich's own server gives."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "sequence"]))
        return name

    def cast(self, value: str) -> str:
        """Return a float32 or integer value in the graph's own precision."""
        return self.op("Cast", value, to=self._float_type)

    def to_integer(self, value: str) -> str:
        """Return a boolean value as int64."""
        return self.op("Cast", value, to=TensorProto.INT64)

    def embedding(self, value: str, name: str, dimension: int) -> None:
        """Declare the output float32 [batch, dimension], L2-normalised."""
        features = self.op("Cast", value, to=TensorProto.FLOAT) if self._half else value
        length = self.op("ReduceL2", features, axes=[-1], keepdims=1)
        self._nodes.append(helper.make_node("Div", [features, length], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", dimension]))

    def count(self) -> int:
        """Return how many numbers all weights have."""
        return sum(weight.size for weight in self._weights.values())

    def size(self) -> int:
        """Return the bytes of all weights."""
        return sum(self._bytes(weight) for weight in self._weights.values())

    def save(self, path: Path, progress: Progress, *, external_above: int = _EXTERNAL_ABOVE) -> None:
        """Write the graph, and above that many bytes its weights beside it, as `<name>.data`.

        Needs the memory of one tensor, three times. Raises WeightError, OSError, and what reading a weight raises.
        """
        model = self._without_weights()
        if self.size() > external_above:
            location = f"{path.name}.data"
            with path.with_name(location).open("wb") as data:
                for name, weight in self._weights.items():
                    self._write_external(model.graph, name, weight, data, location, progress)
            path.write_bytes(model.SerializeToString())
            return
        with path.open("wb") as file:
            file.write(model.SerializeToString())
            for name, weight in self._weights.items():
                # Protobuf reads messages one after the other as one message with the fields of all.
                piece = ModelProto(graph=GraphProto(initializer=[self._inline(name, weight)]))
                file.write(piece.SerializeToString())
                progress(self._bytes(weight))

    def _without_weights(self) -> ModelProto:
        constants = [_tensor(name, values) for name, values in self._constants.items()]
        graph = helper.make_graph(self._nodes, "main_graph", self._inputs, self._outputs, constants)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="immich-ml-compat",
        )

    def _inline(self, name: str, weight: Weight) -> TensorProto:
        return _tensor(name, self._read(name, weight))

    def _write_external(
        self, graph: GraphProto, name: str, weight: Weight, data: BinaryIO, location: str, progress: Progress
    ) -> None:
        if self._bytes(weight) < _LEAST_EXTERNAL:
            graph.initializer.append(self._inline(name, weight))
            return
        data.seek(-data.tell() % _ALIGNMENT, 1)
        proto = TensorProto(name=name, data_type=self._float_type, dims=weight.shape)
        proto.raw_data = b""  # what the helper asks for before it takes a place elsewhere
        external_data_helper.set_external_data(proto, location, data.tell(), self._bytes(weight))
        proto.ClearField("raw_data")
        graph.initializer.append(proto)
        data.write(self._read(name, weight).data)
        progress(self._bytes(weight))

    def _read(self, name: str, weight: Weight) -> Array:
        values = weight.read()
        if values.shape != weight.shape:
            raise ValueError(f"{name} is {values.shape}, not {weight.shape}")
        if values.dtype.kind != "f":
            raise WeightError(f"{name} has {values.dtype} and no fractions. {OFFICIAL}")
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            converted: Array = np.ascontiguousarray(values, dtype=self._dtype)
        if not np.isfinite(converted).all():
            if self._half and np.isfinite(values).all():
                raise WeightError(f"{name} has numbers that do not fit into float16: convert without --fp16")
            raise WeightError(f"{name} has numbers that are none (NaN) or infinite. {OFFICIAL}")
        return converted

    @property
    def _dtype(self) -> np.dtype[np.floating]:
        return np.dtype(np.float16 if self._half else np.float32)

    @property
    def _float_type(self) -> int:
        return TensorProto.FLOAT16 if self._half else TensorProto.FLOAT

    def _bytes(self, weight: Weight) -> int:
        return weight.size * self._dtype.itemsize

    def _constant(self, name: str, values: Array) -> str:
        self._constants[name] = values
        return name


def _tensor(name: str, values: Array) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=values.tobytes())
