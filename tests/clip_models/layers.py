"""The layers that the towers share: linear, normalisation, activations, attention, transformer blocks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .graph import Graph

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]

# Random projections of the attention scores are enlarged, so that attention is not near to uniform and
# the answers of a network of two layers differ visibly between inputs.
QUERY_KEY_GAIN = 1.5
OUTPUT_GAIN = 1.5


def linear(graph: Graph, x: str, name: str, inputs: int, outputs: int, *, bias: bool = True, gain: float = 1.0) -> str:
    """`x @ weight + bias`; the weight is stored as (inputs, outputs)."""
    weight = graph.normal(f"{name}.weight", (inputs, outputs), gain / math.sqrt(inputs))
    product = graph.op("MatMul", x, weight)
    return graph.op("Add", product, graph.normal(f"{name}.bias", (outputs,), 0.1)) if bias else product


def layer_norm(graph: Graph, x: str, name: str, width: int, epsilon: float) -> str:
    weight = graph.normal(f"{name}.weight", (width,), 0.1, mean=1.0)
    bias = graph.normal(f"{name}.bias", (width,), 0.1)
    return graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)


def _gelu(graph: Graph, x: str) -> str:
    error_function = graph.op("Erf", graph.op("Div", x, graph.number(math.sqrt(2.0))))
    doubled = graph.op("Mul", x, graph.op("Add", error_function, graph.number(1.0)))
    return graph.op("Mul", doubled, graph.number(0.5))


def _gelu_tanh(graph: Graph, x: str) -> str:
    cubic = graph.op("Mul", graph.op("Pow", x, graph.number(3.0)), graph.number(0.044715))
    inner = graph.op("Mul", graph.op("Add", x, cubic), graph.number(math.sqrt(2.0 / math.pi)))
    doubled = graph.op("Mul", x, graph.op("Add", graph.op("Tanh", inner), graph.number(1.0)))
    return graph.op("Mul", doubled, graph.number(0.5))


def _quick_gelu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", graph.op("Mul", x, graph.number(1.702))))


def _relu(graph: Graph, x: str) -> str:
    return graph.op("Relu", x)


_ACTIVATIONS: dict[Activation, Callable[[Graph, str], str]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": _relu,
}


def activate(graph: Graph, x: str, activation: Activation) -> str:
    return _ACTIVATIONS[activation](graph, x)


def mlp(graph: Graph, x: str, names: tuple[str, str], width: int, hidden: int, activation: Activation) -> str:
    inner = activate(graph, linear(graph, x, names[0], width, hidden), activation)
    return linear(graph, inner, names[1], hidden, width, gain=OUTPUT_GAIN)


def attend(graph: Graph, query: str, key: str, value: str, heads: int, width: int, mask: str | None = None) -> str:
    """Scaled dot-product attention of (batch, tokens, width) tensors; `mask` is added to the scores."""
    head_width = width // heads
    split = graph.integers(0, -1, heads, head_width)

    def by_head(x: str, order: list[int]) -> str:
        return graph.op("Transpose", graph.op("Reshape", x, split), perm=order)

    scaled = graph.op("Mul", by_head(query, [0, 2, 1, 3]), graph.number(head_width**-0.5))
    scores = graph.op("MatMul", scaled, by_head(key, [0, 2, 3, 1]))
    if mask is not None:
        scores = graph.op("Add", scores, mask)
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), by_head(value, [0, 2, 1, 3]))
    joined = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return graph.op("Reshape", joined, graph.integers(0, -1, width))


@dataclass(frozen=True)
class BlockNames:
    """What the weights of a block are called in the published checkpoints, after the block's own prefix."""

    attention_norm: str
    query_key_value: tuple[str, ...]  # one name: a fused projection; three: one for each
    attention_output: str
    mlp_norm: str
    mlp: tuple[str, str]


@dataclass(frozen=True)
class BlockShape:
    """The sizes of a transformer's blocks, and where the normalisation stands: before each half or after it."""

    width: int
    heads: int
    hidden: int
    activation: Activation
    epsilon: float
    pre_norm: bool = True


def self_attention(
    graph: Graph, x: str, names: tuple[tuple[str, ...], str], shape: BlockShape, mask: str | None
) -> str:
    width, (inner, output) = shape.width, names
    if len(inner) == 1:
        fused = linear(graph, x, inner[0], width, 3 * width, gain=QUERY_KEY_GAIN)
        query, key, value = graph.multiple("Split", 3, fused, axis=-1)
    else:
        gains = (QUERY_KEY_GAIN, QUERY_KEY_GAIN, 1.0)
        projected = zip(inner, gains, strict=True)
        query, key, value = (linear(graph, x, name, width, width, gain=gain) for name, gain in projected)
    mixed = attend(graph, query, key, value, shape.heads, width, mask)
    return linear(graph, mixed, output, width, width, gain=OUTPUT_GAIN)


def block(graph: Graph, x: str, prefix: str, names: BlockNames, shape: BlockShape, mask: str | None = None) -> str:
    """One transformer block: attention and MLP, each with its residual and its normalisation."""

    def attention(value: str) -> str:
        inner = tuple(prefix + name for name in names.query_key_value)
        return self_attention(graph, value, (inner, prefix + names.attention_output), shape, mask)

    def feed_forward(value: str) -> str:
        inner = (prefix + names.mlp[0], prefix + names.mlp[1])
        return mlp(graph, value, inner, shape.width, shape.hidden, shape.activation)

    def normed(value: str, name: str) -> str:
        return layer_norm(graph, value, prefix + name, shape.width, shape.epsilon)

    halves = ((attention, names.attention_norm), (feed_forward, names.mlp_norm))
    for half, norm in halves:
        inner = half(normed(x, norm) if shape.pre_norm else x)
        x = graph.op("Add", x, inner)
        x = x if shape.pre_norm else normed(x, norm)
    return x


def unit_length(graph: Graph, x: str) -> str:
    """Divide by the L2 norm, as `torch.nn.functional.normalize` does."""
    norm = graph.op("ReduceL2", x, axes=[-1], keepdims=1)
    return graph.op("Div", x, graph.op("Clip", norm, graph.number(1e-12)))


def select_token(graph: Graph, x: str, index: int) -> str:
    """`x[:, index]` of a (batch, tokens, width) tensor."""
    gathered = graph.op("Gather", x, graph.integers(index), axis=1)
    return graph.op("Squeeze", gathered, graph.integers(1))
