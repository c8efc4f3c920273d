"""A graph as one that computes the same with less work, for ONNX Runtime on a CPU.

the graph without its weights → PReLU as convolutions → convolutions joined → one token in the last layer
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .one_token import knows, use_one_token
from .outline import read_outline
from .siblings import join_siblings

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

REWRITING_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What is raised of a graph that is not as it should be, beside EngineError: onnx has no class for it."""

_LEAST_OPSET = 7  # before it operators did not repeat the smaller tensor by themselves

_PICTURE_AXES = 4  # item, channel, row, column

_BLOCK = 16
"""ONNX Runtime's convolutions compute so many channels at a time, on some CPUs half as many."""


def simpler(path: Path) -> bytes | None:
    """Return the graph at `path` with less to compute, or None for one in which there is nothing to spare.

    Its large weights stay where they are: it is to be loaded as if it lay in the graph's folder. Raises OSError, or
    ValueError for what is no graph.
    """
    model = read_outline(path)
    gained = [rewrite(model) for rewrite in (use_convolutions, join_siblings, use_one_token)]
    return bytes(model.SerializeToString()) if any(gained) else None


def use_convolutions(model: "ModelProto") -> bool:
    """Rewrite PReLUs with a slope for each channel of a picture; tell whether there were any.

    With slope a it is a·x + (1 - a)·max(x, 0) (He et al. 2015, "Delving Deep into Rectifiers"), where a factor for each
    channel is a convolution of 1 × 1. ONNX Runtime's convolutions keep pictures in blocks of channels, and it knows no
    PReLU for these: it brings each picture into the common order and back, and took two thirds as long for
    MobileFaceNet's PReLUs as for its convolutions.
    """
    from onnx import TensorProto
    from onnx.shape_inference import InferenceError, infer_shapes

    slopes = {
        tensor.name: tensor.dims[-3]
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and _is_for_channels([*tensor.dims])
    }
    if not slopes or not knows(model, _LEAST_OPSET):
        return False
    try:
        values = infer_shapes(model).graph.value_info
    except InferenceError:
        return False
    pictures = {value.name for value in values if len(value.type.tensor_type.shape.dim) == _PICTURE_AXES}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "PRelu" and node.input[0] in pictures and node.input[1] in slopes:
            nodes += _as_convolutions(node, slopes[node.input[1]])
        else:
            nodes.append(node)
    before = len(model.graph.node)
    if len(nodes) == before:
        return False
    _add_constants(model)
    model.graph.node.extend(nodes)
    del model.graph.node[:before]
    return True


def _is_for_channels(shape: list[int]) -> bool:
    """Tell whether a weight has one number for each channel of a picture, and there are whole blocks of them."""
    *others, channels, rows, columns = shape if len(shape) > 2 else [0, 0, 0]
    return rows == columns == 1 and channels > 0 and channels % _BLOCK == 0 and all(length == 1 for length in others)


_ONE, _FILTERS = "prelu/one", "prelu/filters"


def _add_constants(model: "ModelProto") -> None:
    from onnx import TensorProto, helper

    model.graph.initializer.append(helper.make_tensor(_ONE, TensorProto.FLOAT, [], [1.0]))
    model.graph.initializer.append(helper.make_tensor(_FILTERS, TensorProto.INT64, [4], [-1, 1, 1, 1]))


def _as_convolutions(node: "NodeProto", channels: int) -> "list[NodeProto]":
    from onnx import helper

    (picture, slope), (output,) = node.input, node.output
    filters, rest, positive, scaled, added = (
        f"{output}/{name}" for name in ("filters", "rest", "positive", "scaled", "added")
    )
    factor = partial(helper.make_node, "Conv", group=channels, kernel_shape=[1, 1])
    return [
        helper.make_node("Reshape", [slope, _FILTERS], [filters]),
        helper.make_node("Sub", [_ONE, filters], [rest]),
        helper.make_node("Relu", [picture], [positive]),
        factor([positive, rest], [added]),
        factor([picture, filters], [scaled]),
        helper.make_node("Add", [scaled, added], [output]),
    ]
