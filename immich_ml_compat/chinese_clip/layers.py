"""What both towers are made of, in the shapes that ONNX Runtime's and OpenVINO's optimisers know and fuse.

Names are the checkpoint's: a layer `x` has the tensors `x.weight` and `x.bias`.
"""

from collections.abc import Sequence

from .graph import Graph
from .weights import Weight, Weights


def linear(graph: Graph, weights: Weights, value: str, name: str, inputs: int, outputs: int) -> str:
    """Map the last axis from `inputs` to `outputs` numbers."""
    weight, bias = weights.take(f"{name}.weight", outputs, inputs), weights.take(f"{name}.bias", outputs)
    return _linear(graph, value, name, weight, bias)


def layer_norm(graph: Graph, weights: Weights, value: str, name: str, width: int, *, epsilon: float) -> str:
    """Normalise the last axis, in float32 whatever the graph's precision."""
    weight, bias = weights.take(f"{name}.weight", width), weights.take(f"{name}.bias", width)
    inputs = value, graph.weight(f"{name}.weight", weight), graph.weight(f"{name}.bias", bias)
    return graph.op("LayerNormalization", *inputs, axis=-1, epsilon=epsilon)


def projections(
    graph: Graph, query: str, tokens: str, name: str, parts: Sequence[tuple[Weight, Weight]]
) -> tuple[str, str, str]:
    """Return queries of `query`, keys and values of `tokens`; `parts` are their weights and biases in this order."""
    sources = {"query": query, "key": tokens, "value": tokens}
    queries, keys, values = (
        _linear(graph, sources[part], f"{name}.{part}", *weight_and_bias)
        for part, weight_and_bias in zip(sources, parts, strict=True)
    )
    return queries, keys, values


def attention(
    graph: Graph, queries: str, keys: str, values: str, *, head_width: int, width: int, mask: str | None = None
) -> str:
    """Attend with several heads: [batch, n, width] from queries [batch, n, width], keys and values [batch, m, width].

    `mask` is added to the scores [batch, heads, n, m] (Vaswani et al. 2017, "Attention is all you need").
    """
    heads = graph.integers(0, 0, width // head_width, head_width)
    queries = graph.op("Transpose", graph.op("Reshape", queries, heads), perm=[0, 2, 1, 3])
    keys = graph.op("Transpose", graph.op("Reshape", keys, heads), perm=[0, 2, 3, 1])
    values = graph.op("Transpose", graph.op("Reshape", values, heads), perm=[0, 2, 1, 3])
    scores = graph.op("Div", graph.op("MatMul", queries, keys), graph.number(head_width**0.5))
    if mask is not None:
        scores = graph.op("Add", scores, mask)
    context = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), values)
    context = graph.op("Transpose", context, perm=[0, 2, 1, 3])
    return graph.op("Reshape", context, graph.integers(0, 0, width))


def _linear(graph: Graph, value: str, name: str, weight: Weight, bias: Weight) -> str:
    product = graph.op("MatMul", value, graph.weight(f"{name}.weight", weight.transposed))
    return graph.op("Add", product, graph.weight(f"{name}.bias", bias))
