"""Joins convolutions that see one picture in the same way into one that has the filters of all.

    picture → convolution, 2 filters        picture → convolution, 30 filters → split → 2
    picture → convolution, 8 filters                                                  → 8
    picture → convolution, 20 filters                                                 → 20

ONNX Runtime computes filters in blocks of 8 or 16, the last one of each convolution whether it is full or not. A face
detector has such three for every size of face, one each for scores, boxes and landmarks (SCRFD): an eighth of its time
went into what nobody takes. The results are the same, but for rounding.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .one_token import STANDARD, knows

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_LEAST_OPSET = 7
_SIZES_AS_INPUT = 13  # from that opset on Split has them so

_BLOCK = 8
"""Filters that are computed at a time, on some CPUs twice as many."""

_COPYING = 64
"""Handing out one value of the joined picture takes no longer than so many products of a convolution. A guess on the
safe side: where two convolutions of 100 filters, of 1 × 1 on 16 channels, were joined, it took as long as 20."""

_END = ""
"""Stands for whoever runs the graph, among the operators that take a tensor."""

_LEAVING_BLOCKS = {"Flatten", "Reshape", "Shape", "Transpose", _END}
"""For these ONNX Runtime brings a picture back from blocks of channels to the common order. What else takes one, as an
activation, it may compute within the blocks, or within the convolution: a split would end that."""


def join_siblings(model: "ModelProto") -> bool:
    """Join convolutions where that pays; tell whether any were joined."""
    if not knows(model, _LEAST_OPSET):
        return False
    graph = model.graph
    groups = _siblings(graph)
    first = {group[0]: _join(model, [graph.node[place] for place in group]) for group in groups}
    joined = {place for group in groups for place in group}
    nodes: list[NodeProto] = []
    for place, node in enumerate(graph.node):
        nodes += first.get(place, [] if place in joined else [node])
    before = len(graph.node)
    graph.node.extend(nodes)
    del graph.node[:before]
    return bool(groups)


def _siblings(graph: "GraphProto") -> list[list[int]]:
    """Return the places of the nodes that are to be joined, group by group.

    They have the same picture, attributes and size of filters, and these are constants.
    """
    shapes = _constants(graph)
    takers = _takers(graph)
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, node in enumerate(graph.node):
        if node.op_type != "Conv" or node.domain not in STANDARD or not all(name in shapes for name in node.input[1:]):
            continue
        in_groups = any(attribute.name == "group" and attribute.i != 1 for attribute in node.attribute)
        taken_by = takers[node.output[0]]
        if taken_by and taken_by <= _LEAVING_BLOCKS and not in_groups:
            attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
            alike[node.input[0], len(node.input), *attributes, shapes[node.input[1]][1:]].append(place)
    return [group for group in alike.values() if _pays([shapes[graph.node[place].input[1]] for place in group])]


def _constants(graph: "GraphProto") -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights that whoever runs the graph cannot give otherwise."""
    given = {value.name for value in graph.input}
    return {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.name not in given}


def _takers(graph: "GraphProto") -> dict[str, set[str]]:
    """Return the kinds of operators that take each tensor."""
    takers: dict[str, set[str]] = defaultdict(set)
    for node in graph.node:
        for name in node.input:
            takers[name].add(node.op_type)
    for value in graph.output:
        takers[value.name].add(_END)
    return takers


def _pays(weights: Sequence[tuple[int, ...]]) -> bool:
    """Tell whether more is spared than it takes to hand the results out; weights are [filters, channels, ...]."""

    def blocks(count: int) -> int:
        return -(-count // _BLOCK)

    filters = [shape[0] for shape in weights]
    spared = _BLOCK * (sum(map(blocks, filters)) - blocks(sum(filters)))
    return spared * math.prod(weights[0][1:]) > _COPYING * sum(filters)


def _join(model: "ModelProto", group: "Sequence[NodeProto]") -> "list[NodeProto]":
    """Return what computes the outputs of these nodes together."""
    from onnx import TensorProto, helper

    shapes = _constants(model.graph)
    outputs, filters = [node.output[0] for node in group], [shapes[node.input[1]][0] for node in group]
    picture, *constants = group[0].input
    prefix = f"{outputs[0]}/joined"
    taken = [*shapes, *(value.name for value in model.graph.input)]
    taken += [name for node in model.graph.node for name in node.output]
    while any(name.startswith(prefix) for name in taken):
        prefix += "'"
    names = [f"{prefix}/{place}" for place in range(1, 1 + len(constants))]
    whole = [
        helper.make_node("Concat", [node.input[place] for node in group], [name], axis=0)
        for place, name in enumerate(names, start=1)
    ]
    convolution = helper.make_node("Conv", [picture, *names], [prefix])
    convolution.attribute.extend(group[0].attribute)
    split = helper.make_node("Split", [prefix], outputs, axis=1)
    if all(opset.version < _SIZES_AS_INPUT for opset in model.opset_import if opset.domain in STANDARD):
        split.attribute.append(helper.make_attribute("split", filters))
    else:
        sizes = helper.make_tensor(f"{prefix}/filters", TensorProto.INT64, [len(filters)], filters)
        model.graph.initializer.append(sizes)
        split.input.append(sizes.name)
    return [*whole, convolution, split]
