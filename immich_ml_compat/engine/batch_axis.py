"""Rewrites a graph of constant shapes, exported for one item, for any number.

A tracing exporter writes that one into every shape that a tensor is brought into; each of these gets -1 where the
batch is. Where that is in a tensor is found by walking the graph with a batch of a large prime, which no axis has by
itself. An axis may hold it beside something else: attention joins photos and heads, and a linear layer photos and
patches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

_BATCH = 1_000_003
"""A prime that no axis of a model is a multiple of."""

_AXIS = "batch"

Shape = list[int]


@dataclass(frozen=True)
class Place:
    """Where a tensor has its batch: on an axis, of which so many neighbours belong to one item."""

    axis: int
    inner: int = 1


def free_batch_axis(model: "ModelProto") -> None:
    """Rewrite a graph of constant shapes for any number of items. Raises ValueError where that cannot be."""
    from onnx.shape_inference import InferenceError, infer_shapes

    try:
        single = infer_shapes(model).graph
    except InferenceError as error:
        raise ValueError(f"shapes unknown: {error}") from error
    try:
        walk = _walk(model, single, late=False)
    except ValueError:
        walk = _walk(model, single, late=True)
    for value in (*walk.inputs, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = _AXIS
    del model.graph.value_info[:]  # it knows the shapes for one item
    del model.graph.node[:]
    model.graph.node.extend(walk.nodes)
    model.graph.initializer.extend(walk.constants)


def _walk(model: "ModelProto", single: "GraphProto", late: bool) -> "_Walk":
    """Walk from the inputs to the outputs. Raises ValueError where the batch gets lost."""
    from onnx import NodeProto

    walk = _Walk(model, single, late)
    for node in model.graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        walk.follow(copy)
    for value in (*walk.inputs, *model.graph.output):
        if walk.places.get(value.name) != Place(0):
            raise ValueError(f"{value.name} has no axis for the batch")
    return walk


class _Walk:
    """A walk through a graph in the order of its nodes, on which these are rewritten."""

    def __init__(self, model: "ModelProto", single: "GraphProto", late: bool) -> None:
        """`single` is the graph with the shapes that all tensors have for one item; for `late` see below."""
        from onnx import helper

        self._model = model
        self._late = late
        self._known = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [value for value in model.graph.input if value.name not in self._known]
        values = (*single.input, *single.value_info, *single.output)
        self._single = {value.name: _shape(value.type) for value in values}
        self._single |= {name: list(tensor.dims) for name, tensor in self._known.items()}
        self._types = {
            name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for name, tensor in self._known.items()
        }
        self.places: dict[str, Place] = {}
        for value in self.inputs:
            self._types[value.name] = _batched(value.type, Place(0))
            self.places[value.name] = Place(0)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def follow(self, node: "NodeProto") -> None:
        """Take the next node. Raises ValueError where it cannot be told what it does with the batch."""
        if not any(name in self.places for name in node.input):
            self._infer(node)
        elif node.op_type == "Reshape" and node.input[0] in self.places:
            self._reshape(node)
        else:
            if node.op_type == "Concat":
                self._repeat_constants(node)
            self._infer(node)
        self.nodes.append(node)

    def _reshape(self, node: "NodeProto") -> None:
        given, made = node.input[0], node.output[0]
        place = place_after_reshape(self._single[given], self.places[given], self._shape_of_one(made), self._late)
        shape = [-1 if axis == place.axis else length for axis, length in enumerate(self._single[made])]
        node.input[1] = self._constant(f"{made}/shape", shape)
        del node.attribute[:]  # whether nought means nought
        self._place(made, _batched(_typed(self._types[given], self._single[made]), place), place)

    def _repeat_constants(self, node: "NodeProto") -> None:
        """Repeat what is joined to each item, such as the class token, as often as there are items."""
        from onnx import helper

        place = next(self.places[name] for name in node.input if name in self.places)
        for number, name in enumerate(node.input):
            if name in self.places:
                continue
            shape = self._shape_of_one(name)
            if shape[place.axis] != 1:
                raise ValueError(f"{node.name} joins {shape} to the batch")
            repeated = f"{node.output[0]}/repeated{number}"
            first = self._constant(f"{repeated}/first", [0])
            before = self._constant(f"{repeated}/before", shape[: place.axis])
            after = self._constant(f"{repeated}/after", shape[place.axis + 1 :])
            self.nodes += [
                helper.make_node("Shape", [self.inputs[0].name], [f"{repeated}/input"]),
                helper.make_node("Gather", [f"{repeated}/input", first], [f"{repeated}/items"]),
                helper.make_node("Concat", [before, f"{repeated}/items", after], [f"{repeated}/shape"], axis=0),
                helper.make_node("Expand", [name, f"{repeated}/shape"], [repeated]),
            ]
            self._single[repeated] = shape
            self._place(repeated, _batched(self._types[name], place), place)
            node.input[number] = repeated

    def _infer(self, node: "NodeProto") -> None:
        """Have ONNX tell what a node makes of the batch."""
        from onnx import TensorProto, defs
        from onnx.shape_inference import InferenceError, infer_node_outputs

        versions = {opset.domain: opset.version for opset in self._model.opset_import}
        values = {
            name: self._known[name]
            for name in node.input
            if name in self._known and self._known[name].data_location != TensorProto.EXTERNAL
        }
        try:
            schema = defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
            types = infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in node.input if name},
                values,
                opset_imports=list(self._model.opset_import),
                ir_version=self._model.ir_version,
            )
        except (InferenceError, KeyError, RuntimeError) as error:  # its SchemaError is a RuntimeError
            raise ValueError(f"{node.op_type} {node.name}: {error}") from error
        for name in filter(None, node.output):
            if name not in types:
                raise ValueError(f"{node.op_type} {node.name}: shape unknown")
            self._place(name, types[name], self._place_in(node, name, _shape(types[name])))

    def _place_in(self, node: "NodeProto", name: str, shape: Shape) -> Place | None:
        """Tell where a node's output has the batch, or None where it has none."""
        single = self._shape_of_one(name)
        grown = [axis for axis, lengths in enumerate(zip(single, shape, strict=False)) if len(set(lengths)) > 1]
        given = [(self._single[each][place.axis], place) for each in node.input if (place := self.places.get(each))]
        if not given and not grown and len(shape) == len(single):
            return None
        inner = {place.inner for length, place in given if [length] == [single[axis] for axis in grown]}
        if len(shape) != len(single) or len(inner) != 1 or shape[grown[0]] != _BATCH * single[grown[0]]:
            raise ValueError(f"{node.op_type} {node.name}: of a batch, {single} becomes {shape}")
        return Place(grown[0], inner.pop())

    def _place(self, name: str, kind: "TypeProto", place: Place | None) -> None:
        self._types[name] = kind
        if place is not None:
            self.places[name] = place

    def _shape_of_one(self, name: str) -> Shape:
        if name not in self._single:
            raise ValueError(f"{name}: shape unknown")
        return self._single[name]

    def _constant(self, name: str, values: Shape) -> str:
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.array(values, np.int64), name)
        self.constants.append(tensor)
        return name


def place_after_reshape(before: Shape, place: Place, after: Shape, late: bool = False) -> Place:
    """Tell where a batch goes that lies beside so many values. Raises ValueError where it would be torn apart.

    Several axes may meet there. One of length 1 was meant for it, the first (or the last, if `late`: a single patch in
    front of the photos). Else the later one is likelier (attention's heads before its patches), but never the last,
    which holds features.
    """
    stride = place.inner * math.prod(before[place.axis + 1 :])
    single: list[Place] = []
    shared: list[Place] = []
    for axis, length in enumerate(after):
        beside = math.prod(after[axis + 1 :])
        if beside <= stride <= beside * length and stride % beside == 0 and length % (stride // beside) == 0:
            (single if length == 1 else shared).append(Place(axis, stride // beside))
    if single:
        return single[-1 if late else 0]
    if not shared:
        raise ValueError(f"{before} becomes {after}, which tears the batch apart")
    return max(shared, key=lambda found: -1 if found.axis == len(after) - 1 else found.axis)


def _shape(kind: "TypeProto") -> Shape:
    return [axis.dim_value for axis in kind.tensor_type.shape.dim]


def _typed(kind: "TypeProto", shape: Sequence[int]) -> "TypeProto":
    from onnx import helper

    return helper.make_tensor_type_proto(kind.tensor_type.elem_type, shape)


def _batched(kind: "TypeProto", place: Place) -> "TypeProto":
    shape = [length * (_BATCH if axis == place.axis else 1) for axis, length in enumerate(_shape(kind))]
    return _typed(kind, shape)
