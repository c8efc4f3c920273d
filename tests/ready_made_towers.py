"""Chinese-CLIP towers as its own exporter makes them, with next to nothing inside: the names, types and shapes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from immich_ml_compat.catalog import CHINESE_CLIP_DIMENSIONS
from immich_ml_compat.chinese_clip.architectures import CONTEXT_LENGTH, architecture

from .clip_models.graph import Graph

VOCABULARY_SIZE = 21128
_PATCHES = 7  # a side
_WIDTH = 4


@dataclass(frozen=True)
class Towers:
    """The weights of both, and what comes of them in plain numpy."""

    pixels: NDArray[np.float32]
    tokens: NDArray[np.float32]
    words: NDArray[np.float32]

    @classmethod
    def random(cls, name: str, seed: int = 0) -> "Towers":
        dimension, draw = CHINESE_CLIP_DIMENSIONS[name], np.random.default_rng(seed).normal
        shapes = [(3 * _PATCHES**2, dimension), (VOCABULARY_SIZE, _WIDTH), (CONTEXT_LENGTH * _WIDTH, dimension)]
        return cls(*(draw(0, 3, shape).astype(np.float32) for shape in shapes))

    def image_features(self, tensor: NDArray[np.float32]) -> NDArray[np.float64]:
        """Normalised features of a tensor [3, R, R]: the mean of each patch, mapped."""
        side = tensor.shape[-1] // _PATCHES
        patches = tensor.astype(np.float64).reshape(3, _PATCHES, side, _PATCHES, side).mean(axis=(2, 4))
        return _unit(patches.reshape(-1) @ self.pixels)

    def text_features(self, ids: list[int]) -> NDArray[np.float64]:
        """Normalised features of 52 ids: the row of each, mapped."""
        return _unit(self.tokens[ids].astype(np.float64).reshape(-1) @ self.words)

    def image_model(self, side: int) -> onnx.ModelProto:
        graph = Graph(seed=0)
        image = graph.input("image", TensorProto.FLOAT, 3, side, side)
        kernel = [side // _PATCHES] * 2
        patches = graph.op("Flatten", graph.op("AveragePool", image, kernel_shape=kernel, strides=kernel))
        features = graph.op("MatMul", patches, graph.weight("pixels", self.pixels))
        graph.output(features, "unnorm_image_features", self.pixels.shape[1])
        return graph.model()

    def text_model(self) -> onnx.ModelProto:
        graph = Graph(seed=0)
        text = graph.input("text", TensorProto.INT64, CONTEXT_LENGTH)
        rows = graph.op("Flatten", graph.op("Gather", graph.weight("tokens", self.tokens), text))
        features = graph.op("MatMul", rows, graph.weight("words", self.words))
        graph.output(features, "unnorm_text_features", self.words.shape[1])
        return graph.model()


def write_ready_made(cache: Path, name: str, towers: Towers, beside: tuple[str, str] | None = None) -> Path:
    """Put both graphs, and nothing else, into a model's folder; `beside` names the files of their weights."""
    folder = cache / "clip" / name
    models = {"visual": towers.image_model(architecture(name).image_size), "textual": towers.text_model()}
    for (kind, model), extra_file in zip(models.items(), beside or (None, None), strict=True):
        path = folder / kind / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save_model(
            model, path, save_as_external_data=extra_file is not None, location=extra_file, size_threshold=1024
        )
    return folder


def _unit(features: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = features / np.linalg.norm(features)
    return unit
