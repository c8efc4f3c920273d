"""A small typed helper over `onnx.helper`: one object collects the nodes and the weights of a graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
EXTERNAL_DATA_NAME = "model.onnx.data"

FloatArray = NDArray[np.float32]


class Graph:
    """The nodes, weights, inputs and outputs of one model. Every method that adds a node returns its output's name."""

    def __init__(self, *, seed: int, dynamic_batch: bool = False) -> None:
        self.dynamic_batch = dynamic_batch
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, element_type: int, *shape: int) -> str:
        """Declare an input; the batch axis in front of `shape` is added here."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, [self._batch(), *shape]))
        return name

    def output(self, value: str, name: str, *shape: int) -> None:
        """Declare the float output `name`, a copy of `value`; the batch axis in front of `shape` is added here."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [self._batch(), *shape]))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.multiple(kind, 1, *inputs, **attributes)[0]

    def multiple(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node that has `count` outputs."""
        name = f"{kind}_{len(self._nodes)}"
        outputs = [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs

    def weight(self, name: str, values: NDArray[Any]) -> str:
        """Store a tensor under a name of its own."""
        if name in self._weights:
            raise ValueError(f"two weights are named {name}")
        self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def normal(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> str:
        """Store a tensor of normally distributed numbers."""
        return self.weight(name, self._random.normal(mean, scale, shape).astype(np.float32))

    def integers(self, *values: int) -> str:
        """Name the int64 constant that holds `values` (axes and shapes)."""
        return self._constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Name the float constant `value`."""
        return self._constant(f"number_{value!r}", np.array(value, np.float32))

    def integer32(self, value: int) -> str:
        """Name the int32 constant `value`, to compare token ids with."""
        return self._constant(f"integer32_{value}", np.array(value, np.int32))

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        return name if name in self._weights else self.weight(name, values)

    def _batch(self) -> int | str:
        return "batch" if self.dynamic_batch else 1

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, "main_graph", self._inputs, self._outputs, list(self._weights.values()))
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="tests")

    def save(self, path: Path, *, external_data: bool) -> None:
        """Write the model; with `external_data` its weights lie in a file beside it, as those above 2 GB do."""
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save_model(
            self.model(),
            path,
            save_as_external_data=external_data,
            location=EXTERNAL_DATA_NAME if external_data else None,
            size_threshold=1024,
        )
