"""The image towers: OpenCLIP's vision transformer, CLIP's modified ResNet, SigLIP's (timm) vision transformer.

Weights are named as in the published checkpoints. Widths and depths are reduced. One departure follows from that:
SigLIP's image embedding is as wide as its tower, so here a last linear layer (timm_proj "linear" in OpenCLIP's
terms, where the published models have "none") brings the reduced width to the true embedding dimension.
"""

import math

from onnx import TensorProto

from .graph import Graph
from .layers import (
    QUERY_KEY_GAIN,
    BlockNames,
    BlockShape,
    attend,
    block,
    layer_norm,
    linear,
    mlp,
    select_token,
    unit_length,
)
from .stock import VisionSpec

WIDTH = 128
HEADS = 4
LAYERS = 2
RESNET_WIDTH = 16
RESNET_LAYERS = (2, 2, 2, 2)

OPENCLIP_BLOCK = BlockNames("ln_1", ("attn.in_proj",), "attn.out_proj", "ln_2", ("mlp.c_fc", "mlp.c_proj"))
_TIMM_BLOCK = BlockNames("norm1", ("attn.qkv",), "attn.proj", "norm2", ("mlp.fc1", "mlp.fc2"))


def vision_tower(spec: VisionSpec, dimension: int, *, seed: int, dynamic_batch: bool) -> Graph:
    """Build `image` float32 (batch, 3, size, size) -> `embedding` (batch, dimension), of unit length."""
    graph = Graph(seed=seed, dynamic_batch=dynamic_batch)
    image = graph.input("image", TensorProto.FLOAT, 3, spec.image_size, spec.image_size)
    build = {"vit": _openclip_vit, "resnet": _modified_resnet, "siglip": _siglip_vit}[spec.kind]
    graph.output(unit_length(graph, build(graph, image, spec, dimension)), "embedding", dimension)
    return graph


def _patches(graph: Graph, image: str, name: str, spec: VisionSpec, *, bias: bool) -> str:
    """Cut the image into patches and project each: (batch, patches, WIDTH)."""
    size = spec.patch_size
    inputs = [image, graph.normal(f"{name}.weight", (WIDTH, 3, size, size), 1 / math.sqrt(3 * size * size))]
    if bias:
        inputs.append(graph.normal(f"{name}.bias", (WIDTH,), 0.1))
    features = graph.op("Conv", *inputs, kernel_shape=[size, size], strides=[size, size])
    return graph.op("Transpose", graph.op("Reshape", features, graph.integers(0, WIDTH, -1)), perm=[0, 2, 1])


def _openclip_vit(graph: Graph, image: str, spec: VisionSpec, dimension: int) -> str:
    shape = BlockShape(WIDTH, HEADS, 4 * WIDTH, spec.activation, 1e-5)
    patches = _patches(graph, image, "visual.conv1", spec, bias=False)
    x = graph.op("Concat", _class_token(graph, image), patches, axis=1)
    tokens = (spec.image_size // spec.patch_size) ** 2 + 1
    x = graph.op("Add", x, graph.normal("visual.positional_embedding", (tokens, WIDTH), 0.5))
    x = layer_norm(graph, x, "visual.ln_pre", WIDTH, shape.epsilon)
    for index in range(LAYERS):
        x = block(graph, x, f"visual.transformer.resblocks.{index}.", OPENCLIP_BLOCK, shape)
    x = layer_norm(graph, select_token(graph, x, 0), "visual.ln_post", WIDTH, shape.epsilon)
    return graph.op("MatMul", x, graph.normal("visual.proj", (WIDTH, dimension), WIDTH**-0.5))


def _class_token(graph: Graph, image: str) -> str:
    token = graph.normal("visual.class_embedding", (1, 1, WIDTH), 0.5)
    if not graph.dynamic_batch:
        return token
    batch = graph.op("Slice", graph.op("Shape", image), graph.integers(0), graph.integers(1))
    return graph.op("Expand", token, graph.op("Concat", batch, graph.integers(1, WIDTH), axis=0))


def _siglip_vit(graph: Graph, image: str, spec: VisionSpec, dimension: int) -> str:
    shape = BlockShape(WIDTH, HEADS, 4 * WIDTH, spec.activation, 1e-6)
    x = _patches(graph, image, "visual.trunk.patch_embed.proj", spec, bias=True)
    tokens = (spec.image_size // spec.patch_size) ** 2
    x = graph.op("Add", x, graph.normal("visual.trunk.pos_embed", (1, tokens, WIDTH), 0.5))
    for index in range(LAYERS):
        x = block(graph, x, f"visual.trunk.blocks.{index}.", _TIMM_BLOCK, shape)
    x = layer_norm(graph, x, "visual.trunk.norm", WIDTH, shape.epsilon)
    x = _attention_pool_latent(graph, x, "visual.trunk.attn_pool.", shape)
    return linear(graph, x, "visual.head.proj", WIDTH, dimension, bias=False)


def _attention_pool_latent(graph: Graph, x: str, prefix: str, shape: BlockShape) -> str:
    """Pool with a learned query (timm's "map"): attention, then an MLP with its residual."""
    latent = graph.normal(f"{prefix}latent", (1, 1, WIDTH), 1.0)
    query = linear(graph, latent, f"{prefix}q", WIDTH, WIDTH, gain=QUERY_KEY_GAIN)
    key, value = graph.multiple("Split", 2, linear(graph, x, f"{prefix}kv", WIDTH, 2 * WIDTH), axis=-1)
    pooled = linear(graph, attend(graph, query, key, value, HEADS, WIDTH), f"{prefix}proj", WIDTH, WIDTH)
    normed = layer_norm(graph, pooled, f"{prefix}norm", WIDTH, shape.epsilon)
    names = (f"{prefix}mlp.fc1", f"{prefix}mlp.fc2")
    x = graph.op("Add", pooled, mlp(graph, normed, names, WIDTH, shape.hidden, shape.activation))
    return select_token(graph, x, 0)


def _modified_resnet(graph: Graph, image: str, spec: VisionSpec, dimension: int) -> str:
    half = RESNET_WIDTH // 2
    x = _conv_relu(graph, image, "visual.conv1", 3, half, kernel=3, stride=2)
    x = _conv_relu(graph, x, "visual.conv2", half, half, kernel=3)
    x = _conv_relu(graph, x, "visual.conv3", half, RESNET_WIDTH, kernel=3)
    x = _average_pool(graph, x, 2)
    channels = RESNET_WIDTH
    for stage, count in enumerate(RESNET_LAYERS):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            planes = RESNET_WIDTH * 2**stage
            x = _bottleneck(graph, x, f"visual.layer{stage + 1}.{index}.", channels, planes, stride)
            channels = 4 * planes
    return _attention_pool_2d(graph, x, channels, (spec.image_size // 32) ** 2, dimension)


def _conv(graph: Graph, x: str, name: str, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1) -> str:
    """A convolution with the batch normalisation behind it folded in, as exporters fold it."""
    weight = graph.normal(f"{name}.weight", (outputs, inputs, kernel, kernel), math.sqrt(2 / (inputs * kernel**2)))
    bias = graph.normal(f"{name}.bias", (outputs,), 0.1)
    pads = [kernel // 2] * 4
    return graph.op("Conv", x, weight, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)


def _conv_relu(graph: Graph, x: str, name: str, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1) -> str:
    return graph.op("Relu", _conv(graph, x, name, inputs, outputs, kernel=kernel, stride=stride))


def _average_pool(graph: Graph, x: str, size: int) -> str:
    return graph.op("AveragePool", x, kernel_shape=[size, size], strides=[size, size])


def _bottleneck(graph: Graph, x: str, prefix: str, channels: int, planes: int, stride: int) -> str:
    """Strided blocks do not skip pixels: an average pool stands before the convolution, on both branches."""
    branch = _conv_relu(graph, x, f"{prefix}conv1", channels, planes)
    branch = _conv_relu(graph, branch, f"{prefix}conv2", planes, planes, kernel=3)
    if stride > 1:
        branch = _average_pool(graph, branch, stride)
    branch = _conv(graph, branch, f"{prefix}conv3", planes, 4 * planes)
    if stride > 1 or channels != 4 * planes:
        x = _average_pool(graph, x, stride) if stride > 1 else x
        x = _conv(graph, x, f"{prefix}downsample.0", channels, 4 * planes)
    return graph.op("Relu", graph.op("Add", branch, x))


def _attention_pool_2d(graph: Graph, x: str, channels: int, positions: int, dimension: int) -> str:
    """Pool with the mean of all positions as the query."""
    prefix = "visual.attnpool."
    x = graph.op("Transpose", graph.op("Reshape", x, graph.integers(0, channels, -1)), perm=[0, 2, 1])
    mean = graph.op("ReduceMean", x, axes=[1], keepdims=1)
    x = graph.op("Concat", mean, x, axis=1)
    x = graph.op("Add", x, graph.normal(f"{prefix}positional_embedding", (positions + 1, channels), channels**-0.5))
    first = graph.op("Slice", x, graph.integers(0), graph.integers(1), graph.integers(1))
    query = linear(graph, first, f"{prefix}q_proj", channels, channels)
    key = linear(graph, x, f"{prefix}k_proj", channels, channels)
    value = linear(graph, x, f"{prefix}v_proj", channels, channels)
    pooled = attend(graph, query, key, value, max(1, RESNET_WIDTH * 32 // 64), channels)
    return select_token(graph, linear(graph, pooled, f"{prefix}c_proj", channels, dimension), 0)
