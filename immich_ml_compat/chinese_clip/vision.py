"""The image towers, as cn_clip names them: CLIP's vision transformer and ModifiedResNet (Radford et al. 2021)."""

import numpy as np

from .architectures import Architecture
from .graph import Graph
from .layers import attention, layer_norm, linear, projections
from .weights import Weights

_EPSILON = 1e-5  # torch's, of layer and batch normalisation
_STAGES = 4
_REDUCTION = 32  # of a picture's side by the stem and the stages


def image_tower(weights: Weights, architecture: Architecture, *, half: bool) -> Graph:
    """Return the graph of `image` float32 [batch, 3, S, S] → `embedding` float32 [batch, D]."""
    graph = Graph(half=half)
    image = graph.images("image", architecture.image_size)
    tower = _resnet if architecture.patch_size is None else _vision_transformer
    graph.embedding(tower(graph, weights, image, architecture), "embedding", architecture.dimension)
    return graph


def _vision_transformer(graph: Graph, weights: Weights, image: str, architecture: Architecture) -> str:
    patch, grid = architecture.patch_size or 0, architecture.image_size // (architecture.patch_size or 1)
    width = weights.shape("visual.conv1.weight", 4)[0]
    if width % architecture.vision_head_width:
        raise weights.mismatch(f"its image tower is {width} wide")
    kernel = graph.weight("visual.conv1.weight", weights.take("visual.conv1.weight", width, 3, patch, patch))
    patches = graph.op("Conv", image, kernel, kernel_shape=[patch, patch], strides=[patch, patch])
    patches = graph.op("Reshape", patches, graph.integers(0, width, grid * grid))
    patches = graph.op("Transpose", patches, perm=[0, 2, 1])

    # The class token and the positions are the same for every image: one addition each is done here.
    positions = weights.take("visual.positional_embedding", grid * grid + 1, width)
    patch_positions = positions.rows(1, grid * grid).reshaped(1, grid * grid, width)
    patches = graph.op("Add", patches, graph.weight("visual.patch_positions", patch_positions))
    start = positions.rows(0, 1).plus(weights.take("visual.class_embedding", width)).reshaped(1, 1, width)
    batch = graph.op("Slice", graph.op("Shape", image), graph.integers(0), graph.integers(1))
    shape = graph.op("Concat", batch, graph.integers(1, width), axis=0)
    start_token = graph.op("Expand", graph.weight("visual.class_token", start), shape)
    hidden = graph.op("Concat", start_token, patches, axis=1)

    hidden = layer_norm(graph, weights, hidden, "visual.ln_pre", width, epsilon=_EPSILON)
    for layer in range(weights.layers("visual.transformer.resblocks")):
        name = f"visual.transformer.resblocks.{layer}"
        hidden = _residual_block(graph, weights, hidden, name, width, architecture.vision_head_width)
    state = graph.op("Gather", hidden, graph.integer(0), axis=1)
    state = layer_norm(graph, weights, state, "visual.ln_post", width, epsilon=_EPSILON)
    projection = weights.take("visual.proj", width, architecture.dimension)
    return graph.op("MatMul", state, graph.weight("visual.proj", projection))


def _residual_block(graph: Graph, weights: Weights, hidden: str, name: str, width: int, head_width: int) -> str:
    normal = layer_norm(graph, weights, hidden, f"{name}.ln_1", width, epsilon=_EPSILON)
    stacked = weights.take(f"{name}.attn.in_proj_weight", 3 * width, width)
    stacked_bias = weights.take(f"{name}.attn.in_proj_bias", 3 * width)
    parts = [(stacked.rows(part * width, width), stacked_bias.rows(part * width, width)) for part in range(3)]
    queries, keys, values = projections(graph, normal, normal, f"{name}.attn", parts)
    context = attention(graph, queries, keys, values, head_width=head_width, width=width)
    attended = linear(graph, weights, context, f"{name}.attn.out_proj", width, width)
    hidden = graph.op("Add", hidden, attended)

    normal = layer_norm(graph, weights, hidden, f"{name}.ln_2", width, epsilon=_EPSILON)
    inner = weights.shape(f"{name}.mlp.c_fc.weight", 2)[0]
    inside = linear(graph, weights, normal, f"{name}.mlp.c_fc", width, inner)
    gate = graph.op("Sigmoid", graph.op("Mul", inside, graph.number(1.702)))  # QuickGELU
    outside = linear(graph, weights, graph.op("Mul", inside, gate), f"{name}.mlp.c_proj", inner, width)
    return graph.op("Add", hidden, outside)


def _resnet(graph: Graph, weights: Weights, image: str, architecture: Architecture) -> str:
    value, strides = image, (2, 1, 1)
    for number, stride in enumerate(strides, 1):
        value = _convolution(graph, weights, value, f"visual.conv{number}", f"visual.bn{number}", size=3, stride=stride)
        value = graph.op("Relu", value)
    value = _average_pool(graph, value)
    for stage in range(1, _STAGES + 1):
        for block in range(weights.layers(f"visual.layer{stage}")):
            name = f"visual.layer{stage}.{block}"
            value = _bottleneck(graph, weights, value, name, halves=stage > 1 and block == 0)
    return _attention_pool(graph, weights, value, architecture)


def _bottleneck(graph: Graph, weights: Weights, value: str, name: str, *, halves: bool) -> str:
    inside = graph.op("Relu", _convolution(graph, weights, value, f"{name}.conv1", f"{name}.bn1", size=1))
    inside = graph.op("Relu", _convolution(graph, weights, inside, f"{name}.conv2", f"{name}.bn2", size=3))
    if halves:
        inside = _average_pool(graph, inside)
    inside = _convolution(graph, weights, inside, f"{name}.conv3", f"{name}.bn3", size=1)
    if weights.has(f"{name}.downsample.0.weight"):
        value = _average_pool(graph, value) if halves else value
        value = _convolution(graph, weights, value, f"{name}.downsample.0", f"{name}.downsample.1", size=1)
    return graph.op("Relu", graph.op("Add", value, inside))


def _convolution(
    graph: Graph, weights: Weights, value: str, name: str, norm: str, *, size: int, stride: int = 1
) -> str:
    """Add a convolution with the batch normalisation after it folded into its kernel and bias."""
    out, channels, *_ = weights.shape(f"{name}.weight", 4)
    mean, variance = (weights.take(f"{norm}.running_{kind}", out) for kind in ("mean", "var"))
    gamma, beta = weights.take(f"{norm}.weight", out), weights.take(f"{norm}.bias", out)
    scale = gamma.times(variance.mapped(lambda numbers: (numbers + _EPSILON) ** -0.5))
    kernel = weights.take(f"{name}.weight", out, channels, size, size).times(scale.reshaped(out, 1, 1, 1))
    bias = beta.plus(mean.times(scale).mapped(np.negative))
    return graph.op(
        "Conv",
        value,
        graph.weight(f"{name}.weight", kernel),
        graph.weight(f"{name}.bias", bias),
        kernel_shape=[size, size],
        strides=[stride, stride],
        pads=[size // 2] * 4,
    )


def _average_pool(graph: Graph, value: str) -> str:
    return graph.op("AveragePool", value, kernel_shape=[2, 2], strides=[2, 2])


def _attention_pool(graph: Graph, weights: Weights, value: str, architecture: Architecture) -> str:
    """Pool [batch, C, h, w] with one query, the mean of all places: the only one whose answer is used."""
    places, width = weights.shape("visual.attnpool.positional_embedding", 2)
    if places != (architecture.image_size // _REDUCTION) ** 2 + 1 or width % architecture.vision_head_width:
        raise weights.mismatch(f"visual.attnpool.positional_embedding is {(places, width)}")
    value = graph.op("Reshape", value, graph.integers(0, width, places - 1))
    value = graph.op("Transpose", value, perm=[0, 2, 1])
    mean = graph.op("ReduceMean", value, axes=[1], keepdims=1)
    positions = weights.take("visual.attnpool.positional_embedding", places, width).reshaped(1, places, width)
    tokens = graph.op("Concat", mean, value, axis=1)
    tokens = graph.op("Add", tokens, graph.weight("visual.attnpool.positional_embedding", positions))
    query = graph.op("Slice", tokens, graph.integers(0), graph.integers(1), graph.integers(1))
    parts = [
        (weights.take(f"visual.attnpool.{part}_proj.weight", width, width),
         weights.take(f"visual.attnpool.{part}_proj.bias", width))
        for part in "qkv"
    ]  # fmt: skip
    queries, keys, values = projections(graph, query, tokens, "visual.attnpool", parts)
    context = attention(graph, queries, keys, values, head_width=architecture.vision_head_width, width=width)
    context = graph.op("Reshape", context, graph.integers(0, width))
    return linear(graph, weights, context, "visual.attnpool.c_proj", width, architecture.dimension)
