"""CLIP ViT-B-32 at its full size with random weights: what it costs is what the published one costs.

The layers are those of the tests' small models (`tests/clip_models`), as wide and as many as in OpenAI's ViT-B/32;
the batch axis is 1, as in the files that Immich publishes.
"""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto

from tests.clip_models import write_clip_model
from tests.clip_models.graph import Graph
from tests.clip_models.layers import BlockShape, block, layer_norm, select_token, unit_length
from tests.clip_models.vision import OPENCLIP_BLOCK

DIMENSION, LAYERS = 512, 12
IMAGE_SIZE, PATCH = 224, 32
VISION = BlockShape(768, 12, 3072, "quick_gelu", 1e-5)
TEXT = BlockShape(512, 8, 2048, "quick_gelu", 1e-5)
CONTEXT, VOCABULARY = 77, 49408


def write_vit_b_32(cache: Path, name: str) -> None:
    """Write `<cache>/clip/<name>`: 88 + 63 million weights, the same each time."""
    write_clip_model(cache, name)  # the small files, and the small graphs that give way now
    folder = cache / "clip" / name
    image_tower().save(folder / "visual/model.onnx", external_data=False)
    text_tower().save(folder / "textual/model.onnx", external_data=False)
    config = json.loads((folder / "config.json").read_bytes())
    config["vision_cfg"] |= {"layers": LAYERS, "width": VISION.width, "head_width": 64}
    config["text_cfg"] |= {"vocab_size": VOCABULARY, "width": TEXT.width, "heads": TEXT.heads, "layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def image_tower(*, dynamic_batch: bool = False) -> Graph:
    """Build `image` float32 [1, 3, 224, 224] -> `embedding` float32 [1, 512], of unit length; or with a free batch."""
    graph, width = Graph(seed=32, dynamic_batch=dynamic_batch), VISION.width
    image = graph.input("image", TensorProto.FLOAT, 3, IMAGE_SIZE, IMAGE_SIZE)
    weight = graph.normal("visual.conv1.weight", (width, 3, PATCH, PATCH), (3 * PATCH**2) ** -0.5)
    patches = graph.op("Conv", image, weight, kernel_shape=[PATCH] * 2, strides=[PATCH] * 2)
    patches = graph.op("Transpose", graph.op("Reshape", patches, graph.integers(0, width, -1)), perm=[0, 2, 1])
    token = graph.normal("visual.class_embedding", (1, 1, width), 0.5)
    if dynamic_batch:
        batch = graph.op("Slice", graph.op("Shape", image), graph.integers(0), graph.integers(1))
        token = graph.op("Expand", token, graph.op("Concat", batch, graph.integers(1, width), axis=0))
    x = graph.op("Concat", token, patches, axis=1)
    tokens = (IMAGE_SIZE // PATCH) ** 2 + 1
    x = graph.op("Add", x, graph.normal("visual.positional_embedding", (tokens, width), 0.5))
    x = layer_norm(graph, x, "visual.ln_pre", width, VISION.epsilon)
    for index in range(LAYERS):
        x = block(graph, x, f"visual.transformer.resblocks.{index}.", OPENCLIP_BLOCK, VISION)
    x = layer_norm(graph, select_token(graph, x, 0), "visual.ln_post", width, VISION.epsilon)
    x = graph.op("MatMul", x, graph.normal("visual.proj", (width, DIMENSION), width**-0.5))
    graph.output(unit_length(graph, x), "embedding", DIMENSION)
    return graph


def text_tower() -> Graph:
    """Build `text` int32 [1, 77] -> `embedding` float32 [1, 512], of unit length."""
    graph, width = Graph(seed=77), TEXT.width
    ids = graph.input("text", TensorProto.INT32, CONTEXT)
    x = graph.op("Gather", graph.normal("token_embedding.weight", (VOCABULARY, width), 1.0), ids, axis=0)
    x = graph.op("Add", x, graph.normal("positional_embedding", (CONTEXT, width), 0.5))
    mask = graph.weight("attn_mask", np.triu(np.full((CONTEXT, CONTEXT), -np.inf, np.float32), 1))
    for index in range(LAYERS):
        x = block(graph, x, f"transformer.resblocks.{index}.", OPENCLIP_BLOCK, TEXT, mask)
    x = layer_norm(graph, x, "ln_final", width, TEXT.epsilon)
    pooled = graph.op("GatherND", x, graph.op("ArgMax", ids, axis=-1, keepdims=1), batch_dims=1)
    x = graph.op("MatMul", pooled, graph.normal("text_projection", (width, DIMENSION), width**-0.5))
    graph.output(unit_length(graph, x), "embedding", DIMENSION)
    return graph
