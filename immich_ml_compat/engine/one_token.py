"""Rewrites a transformer of which one token is used, the class token: the last layer is computed for that one alone.

What picks the token moves up to where the tokens saw each other last, in the last layer's attention. The operators that
it passes work on each token by itself: they have one row now instead of many.

    tokens → attention → linear layers and normalisation of all tokens → the first token
    tokens → attention → the first token → linear layers and normalisation
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

Shape = list[int]
"""The length of each axis, 0 where it is not known."""

Axes = dict[str, int]
"""Tensors of which one token is enough, and the axis that tokens lie on."""

_BY_VALUE = {"Cast", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "Neg", "Relu", "Sigmoid", "Sqrt", "Tanh"}
"""Operators that give each value of a tensor another one, whatever lies beside it."""

_BY_VALUES = {"Add", "Div", "Mul", "Pow", "Sub"}
"""The same of two tensors, which may be repeated along each other's axes."""

_PRODUCTS = {"Gemm", "MatMul"}

STANDARD = ("", "ai.onnx")
"""The names of ONNX's own operators' domain."""

_LEAST_OPSET = 13  # before it Softmax meant something else


def use_one_token(model: "ModelProto") -> bool:
    """Rewrite a graph where it picks one of several tokens; tell whether that spares anything."""
    from onnx.shape_inference import InferenceError, infer_shapes

    if not knows(model, _LEAST_OPSET) or any(_has_graph(node) for node in model.graph.node):
        return False  # a graph within a node may take any tensor
    try:
        tensors = _Tensors(model.graph, infer_shapes(model, data_prop=True).graph)
    except InferenceError:
        return False
    for pick, node in enumerate(tensors.nodes):
        if node.op_type == "Gather" and (path := _climb(tensors, pick)) is not None:
            _rewrite(model.graph, tensors, path)
            del model.graph.value_info[:]  # it knows the shapes for all tokens
            return True
    return False


class _Tensors:
    """What is known of a graph's tensors."""

    def __init__(self, graph: "GraphProto", inferred: "GraphProto") -> None:
        """`inferred` is the same graph with the shapes of its tensors."""
        self.nodes = list(graph.node)
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        kinds = [(value.name, value.type.tensor_type) for value in values]
        self._shapes = {
            name: [axis.dim_value for axis in kind.shape.dim] for name, kind in kinds if kind.HasField("shape")
        }
        self._shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._constants |= {
            node.output[0]: attribute.t
            for node in self.nodes
            for attribute in node.attribute
            if (node.op_type, attribute.name) == ("Constant", "value")
        }
        self.users: dict[str, set[int]] = defaultdict(set)
        """The places of the nodes that take a tensor; -1 is whoever runs the graph."""

        for place, node in enumerate(self.nodes):
            for name in node.input:
                self.users[name].add(place)
        for value in graph.output:
            self.users[value.name].add(-1)

    def shape(self, name: str) -> Shape | None:
        """Return a tensor's shape; None where not even the number of its axes is known."""
        return self._shapes.get(name)

    def integers(self, name: str) -> NDArray[np.int64] | None:
        """Return a constant tensor of int64, None for another one."""
        from onnx import TensorProto, numpy_helper

        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != TensorProto.INT64 or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor).astype(np.int64)


@dataclass(frozen=True)
class _Path:
    """From the node that picks a token up to where it can be picked first."""

    pick: int
    token: int
    passed: set[int]
    """The places of the nodes that are to work on one token."""

    axes: Axes
    """What these nodes take and give."""


def _climb(tensors: _Tensors, pick: int) -> _Path | None:
    """Go from the node that picks a token against the order of nodes; None where no product of matrices is passed."""
    node = tensors.nodes[pick]
    index, shape = tensors.integers(node.input[1]), tensors.shape(node.input[0])
    if index is None or index.size != 1 or not shape:
        return None
    axis = int(attribute(node, "axis", 0)) % len(shape)
    if axis == 0 or shape[axis] < 2:
        return None
    axes, passed, whole = {node.input[0]: axis}, set[int](), set[str]()
    for place in range(pick - 1, -1, -1):
        node = tensors.nodes[place]
        output = node.output[0] if len(node.output) == 1 else ""
        if output not in axes or not tensors.users[output] <= passed | {pick}:
            continue  # another node needs all tokens of it
        above = _axes_above(tensors, node, axes[output])
        if above is None or any(axes.get(name, found) != found or name in whole for name, found in above.items()):
            continue
        others = _others(node, above)
        if others & (axes | above).keys():
            continue  # it takes a tensor token by token and as a whole
        axes |= above
        whole |= others
        passed.add(place)
    if not any(tensors.nodes[place].op_type in _PRODUCTS for place in passed):
        return None
    return _Path(pick, int(index.item()) % shape[axis], passed, axes)


def _others(node: "NodeProto", above: Axes) -> set[str]:
    """Return what a node takes as a whole: weights, and tensors beside those in which tokens lie in rows."""
    places = range(len(node.input)) if node.op_type in _BY_VALUES else range(1)
    return {name for place, name in enumerate(node.input) if place not in places or name not in above}


def _axes_above(tensors: _Tensors, node: "NodeProto", axis: int) -> Axes | None:
    """Tell on which axes a node's inputs have the tokens, where its output has them on `axis`.

    Inputs without tokens are left out. None where a token may depend on others.
    """
    shape, given = tensors.shape(node.output[0]), tensors.shape(node.input[0]) if node.input else None
    if shape is None or given is None or node.domain not in STANDARD:
        return None
    kind, found = node.op_type, None
    if kind in _BY_VALUES:
        return _axes_repeated(shape, {name: tensors.shape(name) for name in node.input}, axis)
    if _keeps_apart(tensors, node, len(shape), axis):
        found = axis
    elif kind == "Gemm" and axis == 0 and not attribute(node, "transA", 0):
        added = tensors.shape(node.input[2]) if len(node.input) > 2 else []
        found = 0 if added is not None and (len(added) < 2 or added[0] == 1) else None
    elif kind == "Transpose":
        found = int(attribute(node, "perm", [*reversed(range(len(shape)))])[axis])
    elif kind == "Reshape" or (kind in ("Squeeze", "Unsqueeze") and len(node.input) > 1):
        found = axis_before_reshape(given, shape, axis)
    return None if found is None else {node.input[0]: found}


def _keeps_apart(tensors: _Tensors, node: "NodeProto", rank: int, axis: int) -> bool:
    """Tell whether a node's first input has the tokens on the same axis, and each gives one of the output."""
    match node.op_type:
        case "LayerNormalization" | "Softmax":  # from an axis on, or along it
            return axis < int(attribute(node, "axis", -1)) % rank
        case "ReduceMean":
            return axis not in _reduced(tensors, node, rank)
        case "MatMul":  # a row of the first matrix, or of the first matrices, gives one of the product
            ranks = [len(shape) for name in node.input if (shape := tensors.shape(name)) is not None]
            return ranks[0] == rank and (axis == rank - 2 or (axis < rank - 2 and ranks[1:] == [2]))
    return node.op_type in _BY_VALUE


def _axes_repeated(shape: Shape, given: Mapping[str, Shape | None], axis: int) -> Axes | None:
    found: Axes = {}
    for name, each in given.items():
        if each is None:
            return None
        own = axis - len(shape) + len(each)
        if own < 0 or each[own] == 1:
            continue  # the same for each token
        if each[own] != shape[axis]:
            return None
        found[name] = own
    return found


def _reduced(tensors: _Tensors, node: "NodeProto", rank: int) -> set[int]:
    """Return the axes that a mean is taken over, all where that is not known."""
    axes = attribute(node, "axes", None)
    if len(node.input) > 1:
        axes = tensors.integers(node.input[1])
    if axes is None or not attribute(node, "keepdims", 1):
        return set(range(rank))
    return {int(axis) % rank for axis in axes}


def axis_before_reshape(before: Shape, after: Shape, axis: int) -> int | None:
    """Tell which axis of a tensor is `axis` of what it is brought into; None where it is not one of its own there."""

    def same(some: Shape, others: Shape) -> bool:
        return some == others or (0 not in some + others and math.prod(some) == math.prod(others))

    return next(
        (
            place
            for place, length in enumerate(before)
            if length == after[axis]
            and same(before[:place], after[:axis])
            and same(before[place + 1 :], after[axis + 1 :])
        ),
        None,
    )


def knows(model: "ModelProto", version: int) -> bool:
    """Tell whether a graph's operators mean what they do from that version of ONNX's own on."""
    return all(opset.version >= version for opset in model.opset_import if opset.domain in STANDARD)


def _has_graph(node: "NodeProto") -> bool:
    return any(each.HasField("g") or each.graphs for each in node.attribute)


def attribute(node: "NodeProto", name: str, default: Any) -> Any:
    """Return the value of a node's attribute, or the default where it has none."""
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _rewrite(graph: "GraphProto", tensors: _Tensors, path: _Path) -> None:
    from onnx import helper, numpy_helper

    def constant(name: str, *values: int, shape: Sequence[int] = (-1,)) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64).reshape(shape), name))
        return name

    made = {tensors.nodes[place].output[0] for place in path.passed}
    cuts = {name: f"{name}/one" for name in path.axes if name not in made}
    for place in (*path.passed, path.pick):
        node = tensors.nodes[place]
        for number, name in enumerate(node.input):
            node.input[number] = cuts.get(name, name)
        if node.op_type == "Reshape":
            output = node.output[0]
            shape = list(tensors.shape(output) or ())
            shape[path.axes[output]] = 1
            node.input[1] = constant(f"{output}/shape", *shape)  # 0 is as long as before
            del node.attribute[:]
    pick = tensors.nodes[path.pick]
    index = tensors.integers(pick.input[1])
    assert index is not None
    pick.input[1] = constant(f"{pick.output[0]}/index", 0, shape=index.shape)
    first, end = constant(f"{pick.output[0]}/first", path.token), constant(f"{pick.output[0]}/end", path.token + 1)
    slices = {
        name: helper.make_node("Slice", [name, first, end, constant(f"{cut}/axis", path.axes[name])], [cut])
        for name, cut in cuts.items()
    }
    nodes = [slices.pop(name) for name in [*slices] if not any(name in node.output for node in tensors.nodes)]
    for node in tensors.nodes:
        nodes.append(node)
        nodes += [slices[name] for name in node.output if name in slices]
    graph.node.extend(nodes)
    del graph.node[: len(tensors.nodes)]
