"""Tiny graphs in place of real models: what is tried here is what comes before a graph, and it comes often."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLIP, FACES, OCR = "ViT-B-32__openai", "buffalo_s", "PP-OCRv5_mobile"
_Shapes = Mapping[str, Sequence[int | str]]
_SIDE, _DIMENSION, _ANCHORS = 16, 512, (12_800, 3_200, 800)


def write_models(cache: Path) -> None:
    """Put detectors and recognisers of faces and text into a cache folder."""
    _write_face_detector(cache / "facial-recognition" / FACES / "detection")
    _write_face_recognizer(cache / "facial-recognition" / FACES / "recognition")
    _write_text_detector(cache / "ocr" / OCR / "detection")
    _write_text_recognizer(cache / "ocr" / OCR / "recognition")


def write_image_tower(cache: Path) -> None:
    """Put a CLIP image tower into a cache folder: of 16 × 16, for which even a small photo is decoded smaller."""
    folder = cache / "clip" / CLIP
    weights = _random(3 * _SIDE**2, _DIMENSION)
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["embedding"])]
    _save(folder / "visual", nodes, {"image": [1, 3, _SIDE, _SIDE]}, {"embedding": [1, _DIMENSION]}, {"w": weights})
    preprocess = {"size": [_SIDE, _SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    (folder / "visual/preprocess_cfg.json").write_text(json.dumps(preprocess | {"resize_mode": "shortest"}))
    (folder / "config.json").write_text(json.dumps({"embed_dim": _DIMENSION}))


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _write_face_detector(folder: Path) -> None:
    """The same few faces in every picture, by SCRFD's nine outputs."""
    random = np.random.default_rng(0)
    widths = {"scores": 1, "boxes": 4, "landmarks": 10}
    shapes = {f"{kind}{count}": [count, width] for kind, width in widths.items() for count in _ANCHORS}
    values = {name: random.random(shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {name: (value > 0.999).astype(np.float32) for name, value in values.items() if name.startswith("scores")}
    nodes = [helper.make_node("Identity", [f"{name}.value"], [name]) for name in shapes]
    constants = {f"{name}.value": value for name, value in values.items()}
    _save(folder, nodes, {"image": [1, 3, 640, 640]}, shapes, constants)


def _write_text_detector(folder: Path) -> None:
    """Text wherever the picture is bright."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Sigmoid", ["grey"], ["map"]),
    ]
    _save(folder, nodes, {"x": [1, 3, "H", "W"]}, {"map": [1, 1, "H", "W"]}, {})


def _write_face_recognizer(folder: Path) -> None:
    """A face's mean colour times a matrix."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["faces"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colours"]),
        helper.make_node("MatMul", ["colours", "w"], ["embeddings"]),
    ]
    inputs: _Shapes = {"faces": ["N", 3, 112, 112]}
    _save(folder, nodes, inputs, {"embeddings": ["N", _DIMENSION]}, {"w": _random(3, _DIMENSION)})


def _write_text_recognizer(folder: Path) -> None:
    """A letter for every 8 columns of a line, by their mean colour."""
    nodes = [
        helper.make_node("AveragePool", ["lines"], ["pooled"], kernel_shape=[48, 8], strides=[48, 8]),
        helper.make_node("Squeeze", ["pooled", "axis"], ["colours"]),
        helper.make_node("Transpose", ["colours"], ["steps"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["steps", "w"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["classes"], axis=2),
    ]
    letters = "abcdefgh"
    outputs: _Shapes = {"classes": ["N", "T", len(letters) + 2]}
    constants = {"w": 9 * _random(3, len(letters) + 2), "axis": np.array([2])}
    _save(folder, nodes, {"lines": ["N", 3, 48, "W"]}, outputs, constants)
    (folder / "charset.txt").write_text("\n".join(letters))


def _save(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: _Shapes,
    outputs: _Shapes,
    constants: Mapping[str, NDArray[Any]],
) -> None:
    def tensors(shapes: _Shapes) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", tensors(inputs), tensors(outputs), initializers)
    folder.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
