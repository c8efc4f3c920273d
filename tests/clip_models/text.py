"""The text towers: CLIP's and SigLIP's (OpenCLIP), and the published encoders that other models take theirs from.

Weights are named as in the published checkpoints. Widths and depths are reduced.
"""

import math

import numpy as np
from onnx import TensorProto

from .graph import FloatArray, Graph
from .layers import BlockNames, BlockShape, activate, block, layer_norm, linear, select_token, unit_length
from .stock import TextSpec
from .vision import OPENCLIP_BLOCK

WIDTH = 128
HEADS = 4
LAYERS = 2
PAD_ID = 1  # of XLM-RoBERTa and of M2M100: their position numbers start after it
POSITIONS = 130

_LOWEST = float(np.finfo(np.float32).min)
_BERT_BLOCK = BlockNames(
    "attention.output.LayerNorm",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "output.LayerNorm",
    ("intermediate.dense", "output.dense"),
)
_M2M100_BLOCK = BlockNames(
    "self_attn_layer_norm",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj",
    "final_layer_norm",
    ("fc1", "fc2"),
)


def text_tower(spec: TextSpec, vocabulary: int, dimension: int, *, seed: int, dynamic_batch: bool) -> Graph:
    """Build `text` (or `input_ids` and `attention_mask`) int32 (batch, context) -> `embedding`, of unit length."""
    graph = Graph(seed=seed, dynamic_batch=dynamic_batch)
    ids = graph.input("input_ids" if spec.mask_input else "text", TensorProto.INT32, spec.context_length)
    if spec.kind in {"clip", "siglip"}:
        features = _openclip_text(graph, ids, spec, vocabulary, dimension)
    elif spec.kind == "m2m100":
        features = _m2m100_text(graph, ids, vocabulary, dimension)
    elif spec.mask_input:
        mask = graph.input("attention_mask", TensorProto.INT32, spec.context_length)
        pooled = _mean(graph, _bert_encoder(graph, ids, mask, spec, vocabulary), mask)
        features = linear(graph, pooled, "LinearTransformation", WIDTH, dimension)
    else:
        mask = _is_word(graph, ids)
        pooled = _mean(graph, _bert_encoder(graph, ids, mask, spec, vocabulary), mask)
        features = _projection_mlp(graph, pooled, dimension)
    graph.output(unit_length(graph, features), "embedding", dimension)
    return graph


def _embed(graph: Graph, ids: str, name: str, vocabulary: int, scale: float = 1.0) -> str:
    return graph.op("Gather", graph.normal(name, (vocabulary, WIDTH), scale), ids, axis=0)


def _openclip_text(graph: Graph, ids: str, spec: TextSpec, vocabulary: int, dimension: int) -> str:
    """CLIP: causal, the state of the end-of-text token. SigLIP: not causal, the state of the last token."""
    causal, length = spec.kind == "clip", spec.context_length
    prefix = "" if causal else "text."
    shape = BlockShape(WIDTH, HEADS, 4 * WIDTH, spec.activation, 1e-5 if causal else 1e-6)
    x = _embed(graph, ids, f"{prefix}token_embedding.weight", vocabulary)
    x = graph.op("Add", x, graph.normal(f"{prefix}positional_embedding", (length, WIDTH), 0.5))
    mask = None
    if causal:
        mask = graph.weight("attn_mask", np.triu(np.full((length, length), -np.inf, np.float32), 1))
    for index in range(LAYERS):
        x = block(graph, x, f"{prefix}transformer.resblocks.{index}.", OPENCLIP_BLOCK, shape, mask)
    x = layer_norm(graph, x, f"{prefix}ln_final", WIDTH, shape.epsilon)
    if not causal:
        return linear(graph, select_token(graph, x, length - 1), "text.text_projection", WIDTH, dimension)
    end = graph.op("ArgMax", ids, axis=-1, keepdims=1)
    pooled = graph.op("GatherND", x, end, batch_dims=1)
    return graph.op("MatMul", pooled, graph.normal("text_projection", (WIDTH, dimension), WIDTH**-0.5))


def _bert_encoder(graph: Graph, ids: str, mask: str, spec: TextSpec, vocabulary: int) -> str:
    """BERT and RoBERTa: normalisation after each half; they differ in how positions are numbered."""
    roberta = spec.kind == "xlm_roberta"
    shape = BlockShape(WIDTH, HEADS, 4 * WIDTH, spec.activation, 1e-5 if roberta else 1e-12, pre_norm=False)
    x = _embed(graph, ids, "transformer.embeddings.word_embeddings.weight", vocabulary)
    x = graph.op("Add", x, graph.normal("transformer.embeddings.token_type_embeddings.weight", (1, WIDTH), 0.1))
    positions = graph.normal("transformer.embeddings.position_embeddings.weight", (POSITIONS, WIDTH), 0.5)
    x = graph.op("Add", x, graph.op("Gather", positions, _positions(graph, ids, spec), axis=0))
    x = layer_norm(graph, x, "transformer.embeddings.LayerNorm", WIDTH, shape.epsilon)
    scores_mask = _scores_mask(graph, mask)
    for index in range(LAYERS):
        x = block(graph, x, f"transformer.encoder.layer.{index}.", _BERT_BLOCK, shape, scores_mask)
    return x


def _positions(graph: Graph, ids: str, spec: TextSpec) -> str:
    if spec.kind == "xlm_roberta":
        return _numbered_words(graph, ids)
    return graph.weight("position_ids", np.arange(spec.context_length, dtype=np.int64)[None])


def _is_word(graph: Graph, ids: str) -> str:
    """1 where the token is not padding, else 0."""
    is_padding = graph.op("Equal", ids, graph.integer32(PAD_ID))
    return graph.op("Cast", graph.op("Not", is_padding), to=TensorProto.INT32)


def _numbered_words(graph: Graph, ids: str) -> str:
    """Number the words from PAD_ID + 1 on; padding has position PAD_ID."""
    words = _is_word(graph, ids)
    counted = graph.op("CumSum", words, graph.integer32(1))
    return graph.op("Add", graph.op("Mul", counted, words), graph.integer32(PAD_ID))


def _scores_mask(graph: Graph, mask: str) -> str:
    """What to add to the attention scores: 0 for words, the lowest number for padding."""
    padding = graph.op("Sub", graph.number(1.0), graph.op("Cast", mask, to=TensorProto.FLOAT))
    return graph.op("Unsqueeze", graph.op("Mul", padding, graph.number(_LOWEST)), graph.integers(1, 2))


def _mean(graph: Graph, x: str, mask: str) -> str:
    """The mean over the tokens whose mask is 1."""
    weights = graph.op("Unsqueeze", graph.op("Cast", mask, to=TensorProto.FLOAT), graph.integers(2))
    total = graph.op("ReduceSum", graph.op("Mul", x, weights), graph.integers(1), keepdims=0)
    return graph.op("Div", total, graph.op("ReduceSum", weights, graph.integers(1), keepdims=0))


def _projection_mlp(graph: Graph, pooled: str, dimension: int) -> str:
    """OpenCLIP's projection of a published text tower: two linear layers without biases."""
    hidden = (WIDTH + dimension) // 2
    x = linear(graph, pooled, "text.proj.0", WIDTH, hidden, bias=False)
    return linear(graph, activate(graph, x, "gelu"), "text.proj.2", hidden, dimension, bias=False)


def _m2m100_text(graph: Graph, ids: str, vocabulary: int, dimension: int) -> str:
    """The encoder of NLLB: scaled embeddings, sinusoidal positions, ReLU, the state of the first token."""
    shape = BlockShape(WIDTH, HEADS, 4 * WIDTH, "relu", 1e-5)
    x = _embed(graph, ids, "text.transformer.embed_tokens.weight", vocabulary, WIDTH**-0.5)
    x = graph.op("Mul", x, graph.number(math.sqrt(WIDTH)))
    table = graph.weight("text.transformer.embed_positions.weights", sinusoids(POSITIONS, WIDTH))
    x = graph.op("Add", x, graph.op("Gather", table, _numbered_words(graph, ids), axis=0))
    mask = _scores_mask(graph, _is_word(graph, ids))
    for index in range(LAYERS):
        x = block(graph, x, f"text.transformer.layers.{index}.", _M2M100_BLOCK, shape, mask)
    x = layer_norm(graph, x, "text.transformer.layer_norm", WIDTH, shape.epsilon)
    return linear(graph, select_token(graph, x, 0), "text.proj", WIDTH, dimension, bias=False)


def sinusoids(count: int, width: int) -> FloatArray:
    """M2M100's positions: all sines, then all cosines; none for padding."""
    half = width // 2
    rates = np.exp(np.arange(half) * (-math.log(10000.0) / (half - 1)))
    angles = np.arange(count)[:, None] * rates
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table[PAD_ID] = 0.0
    return table.astype(np.float32)
