"""The text tower: BERT (Devlin et al. 2019) with a projection of its first state, as cn_clip names it."""

from .architectures import CONTEXT_LENGTH, TEXT_HEAD_WIDTH, VOCABULARY_SIZE, Architecture
from .graph import Graph
from .layers import attention, layer_norm, linear, projections
from .weights import Weights

_EPSILON = 1e-12
_MASKED = -10000.0  # what the original adds to the scores of padding


def text_tower(weights: Weights, architecture: Architecture, *, half: bool) -> Graph:
    """Return the graph of `text` int32 [batch, sequence] → `embedding` float32 [batch, D].

    Zeros are padding, and make no difference: a sequence may be as short as its text, and at most 52 tokens.
    """
    graph = Graph(half=half)
    tokens = graph.tokens("text")
    mask = _attention_mask(graph, tokens)
    words, width = weights.shape("bert.embeddings.word_embeddings.weight", 2)
    if words != VOCABULARY_SIZE or width % TEXT_HEAD_WIDTH:
        raise weights.mismatch(f"its vocabulary is {words} words in {width} numbers each")
    hidden = _embeddings(graph, weights, tokens, words, width)
    for layer in range(weights.layers("bert.encoder.layer")):
        hidden = _layer(graph, weights, hidden, f"bert.encoder.layer.{layer}", width, mask)
    state = graph.op("Gather", hidden, graph.integer(0), axis=1)
    projection = graph.weight("text_projection", weights.take("text_projection", width, architecture.dimension))
    graph.embedding(graph.op("MatMul", state, projection), "embedding", architecture.dimension)
    return graph


def _attention_mask(graph: Graph, tokens: str) -> str:
    """Return what is added to scores: [batch, 1, 1, sequence], 0 for tokens and -10000 for padding."""
    is_token = graph.op("Not", graph.op("Equal", tokens, graph.token(0)))
    attended = graph.op("Unsqueeze", graph.to_integer(is_token), graph.integers(1))
    attended = graph.cast(graph.op("Unsqueeze", attended, graph.integers(2)))
    return graph.op("Mul", graph.op("Sub", graph.number(1.0), attended), graph.number(_MASKED))


def _embeddings(graph: Graph, weights: Weights, tokens: str, words: int, width: int) -> str:
    table = weights.take("bert.embeddings.word_embeddings.weight", words, width)
    embedded = graph.op("Gather", graph.weight("bert.embeddings.word_embeddings.weight", table), tokens, axis=0)
    # Every token is of the first type, and the positions do not depend on the text: one table serves for both.
    positions, _ = weights.shape("bert.embeddings.position_embeddings.weight", 2)
    types, _ = weights.shape("bert.embeddings.token_type_embeddings.weight", 2)
    if positions < CONTEXT_LENGTH:
        raise weights.mismatch(f"bert.embeddings.position_embeddings.weight has {positions} places")
    places = weights.take("bert.embeddings.position_embeddings.weight", positions, width).rows(0, CONTEXT_LENGTH)
    places = places.plus(weights.take("bert.embeddings.token_type_embeddings.weight", types, width).rows(0, 1))
    shape = graph.op("Shape", tokens)
    length = graph.op("Slice", shape, graph.integers(1), graph.integers(2))
    places_used = graph.op(
        "Slice", graph.weight("bert.embeddings.places", places), graph.integers(0), length, graph.integers(0)
    )
    embedded = graph.op("Add", embedded, places_used)
    return layer_norm(graph, weights, embedded, "bert.embeddings.LayerNorm", width, epsilon=_EPSILON)


def _layer(graph: Graph, weights: Weights, hidden: str, name: str, width: int, mask: str) -> str:
    parts = [
        (weights.take(f"{name}.attention.self.{part}.weight", width, width),
         weights.take(f"{name}.attention.self.{part}.bias", width))
        for part in ("query", "key", "value")
    ]  # fmt: skip
    queries, keys, values = projections(graph, hidden, hidden, f"{name}.attention.self", parts)
    context = attention(graph, queries, keys, values, head_width=TEXT_HEAD_WIDTH, width=width, mask=mask)
    attended = linear(graph, weights, context, f"{name}.attention.output.dense", width, width)
    hidden = graph.op("Add", attended, hidden)
    hidden = layer_norm(graph, weights, hidden, f"{name}.attention.output.LayerNorm", width, epsilon=_EPSILON)

    inner = weights.shape(f"{name}.intermediate.dense.weight", 2)[0]
    inside = _gelu(graph, linear(graph, weights, hidden, f"{name}.intermediate.dense", width, inner))
    outside = linear(graph, weights, inside, f"{name}.output.dense", inner, width)
    hidden = graph.op("Add", outside, hidden)
    return layer_norm(graph, weights, hidden, f"{name}.output.LayerNorm", width, epsilon=_EPSILON)


def _gelu(graph: Graph, value: str) -> str:
    """Hendrycks and Gimpel 2016, in the form that optimisers take for one operator."""
    error = graph.op("Erf", graph.op("Div", value, graph.number(2**0.5)))
    product = graph.op("Mul", value, graph.op("Add", error, graph.number(1.0)))
    return graph.op("Mul", product, graph.number(0.5))
