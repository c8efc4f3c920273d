"""What the towers compute, once more and apart from the graphs: the formulas in plain numpy, in float64.

It takes only the weights from a graph, never its nodes: an agreement says that the graph is wired rightly.
One picture or text at a time, without a batch axis.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import numpy_helper

from .layers import Activation
from .stock import ModelSpec, TextSpec, VisionSpec
from .vision import HEADS, LAYERS, RESNET_LAYERS, WIDTH

Array = NDArray[np.float64]
Ids = NDArray[np.int32]

_ERF = np.vectorize(math.erf, otypes=[np.float64])

_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "quick_gelu": lambda x: x / (1.0 + np.exp(-1.702 * x)),
    "gelu": lambda x: np.asarray(0.5 * x * (1.0 + _ERF(x / math.sqrt(2.0)))),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
}


class Reference:
    """One tower's weights, and the formulas that use them."""

    def __init__(self, model: Path) -> None:
        initializers = onnx.load(model).graph.initializer
        self._weights = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in initializers}

    def encode_image(self, spec: ModelSpec, image: NDArray[np.float32]) -> Array:
        towers = {"vit": self._openclip_vit, "siglip": self._siglip_vit, "resnet": self._resnet}
        return _unit(towers[spec.vision.kind](image.astype(np.float64), spec.vision))

    def encode_text(self, spec: ModelSpec, ids: Ids, mask: Ids | None = None) -> Array:
        towers = {"clip": self._clip_text, "siglip": self._siglip_text, "m2m100": self._m2m100}
        tower = towers.get(spec.text.kind)
        return _unit(tower(ids, spec.text) if tower else self._bert(ids, mask, spec.text))

    def _w(self, name: str) -> Array:
        return self._weights[name]

    def _linear(self, x: Array, name: str) -> Array:
        product: Array = x @ self._w(f"{name}.weight")
        return product + self._weights.get(f"{name}.bias", np.zeros(1))

    def _norm(self, x: Array, name: str, epsilon: float) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return np.asarray(scaled * self._w(f"{name}.weight") + self._w(f"{name}.bias"))

    def _mlp(self, x: Array, first: str, second: str, activation: Activation) -> Array:
        return self._linear(_ACTIVATIONS[activation](self._linear(x, first)), second)

    def _fused_attention(self, x: Array, inner: str, outer: str, allowed: NDArray[np.bool_] | None = None) -> Array:
        query, key, value = np.split(self._linear(x, inner), 3, axis=-1)
        return self._linear(_attention(query, key, value, HEADS, allowed), outer)

    def _separate_attention(self, x: Array, inner: list[str], outer: str, allowed: NDArray[np.bool_]) -> Array:
        query, key, value = (self._linear(x, name) for name in inner)
        return self._linear(_attention(query, key, value, HEADS, allowed), outer)

    def _openclip_blocks(
        self, x: Array, prefix: str, activation: Activation, epsilon: float, allowed: NDArray[np.bool_] | None = None
    ) -> Array:
        for index in range(LAYERS):
            name = f"{prefix}transformer.resblocks.{index}"
            normed = self._norm(x, f"{name}.ln_1", epsilon)
            x = x + self._fused_attention(normed, f"{name}.attn.in_proj", f"{name}.attn.out_proj", allowed)
            normed = self._norm(x, f"{name}.ln_2", epsilon)
            x = x + self._mlp(normed, f"{name}.mlp.c_fc", f"{name}.mlp.c_proj", activation)
        return x

    def _openclip_vit(self, image: Array, spec: VisionSpec) -> Array:
        patches = _patches(image, spec.patch_size) @ self._w("visual.conv1.weight").reshape(WIDTH, -1).T
        x = np.concatenate([self._w("visual.class_embedding")[0], patches]) + self._w("visual.positional_embedding")
        x = self._openclip_blocks(self._norm(x, "visual.ln_pre", 1e-5), "visual.", spec.activation, 1e-5)
        projected: Array = self._norm(x, "visual.ln_post", 1e-5)[0] @ self._w("visual.proj")
        return projected

    def _siglip_vit(self, image: Array, spec: VisionSpec) -> Array:
        trunk, patch_embed = "visual.trunk", "visual.trunk.patch_embed.proj"
        x = _patches(image, spec.patch_size) @ self._w(f"{patch_embed}.weight").reshape(WIDTH, -1).T
        x = x + self._w(f"{patch_embed}.bias") + self._w(f"{trunk}.pos_embed")[0]
        for index in range(LAYERS):
            name = f"{trunk}.blocks.{index}"
            normed = self._norm(x, f"{name}.norm1", 1e-6)
            x = x + self._fused_attention(normed, f"{name}.attn.qkv", f"{name}.attn.proj")
            x = x + self._mlp(
                self._norm(x, f"{name}.norm2", 1e-6), f"{name}.mlp.fc1", f"{name}.mlp.fc2", spec.activation
            )
        x, pool = self._norm(x, f"{trunk}.norm", 1e-6), f"{trunk}.attn_pool"
        key, value = np.split(self._linear(x, f"{pool}.kv"), 2, axis=-1)
        query = self._linear(self._w(f"{pool}.latent")[0], f"{pool}.q")
        x = self._linear(_attention(query, key, value, HEADS), f"{pool}.proj")
        x = x + self._mlp(self._norm(x, f"{pool}.norm", 1e-6), f"{pool}.mlp.fc1", f"{pool}.mlp.fc2", spec.activation)
        return self._linear(x[0], "visual.head.proj")

    def _conv(self, x: Array, name: str, stride: int = 1) -> Array:
        weight = self._w(f"{name}.weight")
        size = weight.shape[-1]
        padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
        windows = sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        summed = np.tensordot(weight, windows, axes=([1, 2, 3], [0, 3, 4]))
        return summed + self._w(f"{name}.bias")[:, None, None]

    def _resnet(self, image: Array, spec: VisionSpec) -> Array:
        x = np.maximum(self._conv(image, "visual.conv1", 2), 0)
        x = np.maximum(self._conv(x, "visual.conv2"), 0)
        x = _halve(np.maximum(self._conv(x, "visual.conv3"), 0))
        for stage, blocks in enumerate(RESNET_LAYERS):
            for index in range(blocks):
                x = self._bottleneck(x, f"visual.layer{stage + 1}.{index}", stage > 0 and index == 0)
        flat, pool = x.reshape(len(x), -1).T, "visual.attnpool"
        x = np.concatenate([flat.mean(0, keepdims=True), flat]) + self._w(f"{pool}.positional_embedding")
        query, key, value = (self._linear(x, f"{pool}.{part}_proj") for part in "qkv")
        attended = _attention(query[:1], key, value, len(flat[0]) // 64)
        return self._linear(attended[0], f"{pool}.c_proj")

    def _bottleneck(self, x: Array, name: str, strided: bool) -> Array:
        branch = np.maximum(self._conv(x, f"{name}.conv1"), 0)
        branch = np.maximum(self._conv(branch, f"{name}.conv2"), 0)
        branch = self._conv(_halve(branch) if strided else branch, f"{name}.conv3")
        if f"{name}.downsample.0.weight" in self._weights:
            x = self._conv(_halve(x) if strided else x, f"{name}.downsample.0")
        return np.maximum(branch + x, 0)

    def _clip_text(self, ids: Ids, spec: TextSpec) -> Array:
        x = self._w("token_embedding.weight")[ids] + self._w("positional_embedding")
        causal = np.arange(len(ids))[None, :] <= np.arange(len(ids))[:, None]
        x = self._openclip_blocks(x, "", spec.activation, 1e-5, causal)
        end = list(ids).index(max(ids))
        projected: Array = self._norm(x, "ln_final", 1e-5)[end] @ self._w("text_projection")
        return projected

    def _siglip_text(self, ids: Ids, spec: TextSpec) -> Array:
        x = self._w("text.token_embedding.weight")[ids] + self._w("text.positional_embedding")
        x = self._openclip_blocks(x, "text.", spec.activation, 1e-6)
        return self._linear(self._norm(x, "text.ln_final", 1e-6)[-1], "text.text_projection")

    def _m2m100(self, ids: Ids, spec: TextSpec) -> Array:
        x = self._w("text.transformer.embed_tokens.weight")[ids] * math.sqrt(WIDTH)
        x = x + self._w("text.transformer.embed_positions.weights")[_roberta_positions(ids)]
        for index in range(LAYERS):
            name = f"text.transformer.layers.{index}"
            normed = self._norm(x, f"{name}.self_attn_layer_norm", 1e-5)
            inner = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
            x = x + self._separate_attention(normed, inner, f"{name}.self_attn.out_proj", (ids != 1)[None])
            normed = self._norm(x, f"{name}.final_layer_norm", 1e-5)
            x = x + self._mlp(normed, f"{name}.fc1", f"{name}.fc2", spec.activation)
        return self._linear(self._norm(x, "text.transformer.layer_norm", 1e-5)[0], "text.proj")

    def _bert(self, ids: Ids, mask: Ids | None, spec: TextSpec) -> Array:
        words = (ids != 1) if mask is None else mask.astype(bool)
        epsilon = 1e-12 if spec.kind == "bert" else 1e-5
        positions = np.arange(len(ids)) if spec.kind == "bert" else _roberta_positions(ids)
        embeddings = "transformer.embeddings"
        x = self._w(f"{embeddings}.word_embeddings.weight")[ids] + self._w(f"{embeddings}.token_type_embeddings.weight")
        x = x + self._w(f"{embeddings}.position_embeddings.weight")[positions]
        x = self._norm(x, f"{embeddings}.LayerNorm", epsilon)
        for index in range(LAYERS):
            name = f"transformer.encoder.layer.{index}"
            inner = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
            attended = self._separate_attention(x, inner, f"{name}.attention.output.dense", words[None])
            x = self._norm(x + attended, f"{name}.attention.output.LayerNorm", epsilon)
            inner_mlp = self._mlp(x, f"{name}.intermediate.dense", f"{name}.output.dense", spec.activation)
            x = self._norm(x + inner_mlp, f"{name}.output.LayerNorm", epsilon)
        pooled = x[words].mean(0)
        if spec.mask_input:
            return self._linear(pooled, "LinearTransformation")
        return self._mlp(pooled, "text.proj.0", "text.proj.2", "gelu")


def _attention(query: Array, key: Array, value: Array, heads: int, allowed: NDArray[np.bool_] | None = None) -> Array:
    width = query.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / math.sqrt(width)
        scores = scores if allowed is None else np.where(allowed, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
    return np.concatenate(outputs, axis=-1)


def _patches(image: Array, size: int) -> Array:
    rows = range(0, image.shape[1] - size + 1, size)
    return np.array([image[:, y : y + size, x : x + size].ravel() for y in rows for x in rows])


def _halve(x: Array) -> Array:
    return np.asarray((x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4)


def _roberta_positions(ids: Ids) -> NDArray[np.int64]:
    count, positions = 1, []
    for token in ids:
        count += token != 1
        positions.append(count if token != 1 else 1)
    return np.array(positions, np.int64)


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x)
