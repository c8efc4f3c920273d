"""Answers to MT Photos: those of `POST /predict` in its shapes, where most numbers are strings."""

import math
from typing import Any

import orjson

from ..messages import Answer

DETECTOR = "insightface"
"""What it calls the family of SCRFD and ArcFace."""


def ocr_answer(body: dict[str, Any]) -> dict[str, Any]:
    """Return the texts, the score of each, and the upright box around each, in pixels."""
    lines, size = body["ocr"], (body["imageWidth"], body["imageHeight"])
    return {
        "result": {
            "texts": lines["text"],
            "scores": [f"{score:.2f}" for score in lines["textScore"]],
            "boxes": [
                {"x": _fixed(left), "y": _fixed(top), "width": _fixed(right - left), "height": _fixed(bottom - top)}
                for left, top, right, bottom in upright_boxes(lines["box"], size)
            ],
        }
    }


def clip_answer(body: dict[str, Any]) -> dict[str, Any]:
    """Return an embedding, of length 1."""
    return {"result": [f"{value:.16f}" for value in orjson.loads(body["clip"])]}


def faces_answer(body: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the faces, best first: embeddings of length 1, boxes in whole pixels."""
    faces = [
        {
            "embedding": _normalised(orjson.loads(face["embedding"])),
            "facial_area": {
                "x": int(box["x1"]),
                "y": int(box["y1"]),
                "w": int(box["x2"] - box["x1"]),
                "h": int(box["y2"] - box["y1"]),
            },
            "face_confidence": face["score"],
        }
        for face in body["facial-recognition"]
        for box in [face["boundingBox"]]
    ]
    return {"detector_backend": DETECTOR, "recognition_model": model, "result": faces}


def error_answer(answer: Answer) -> dict[str, Any]:
    """Return what is wrong, which stands in `msg` there."""
    return {"result": [], "msg": orjson.loads(answer.body)["detail"]}


def upright_boxes(corners: list[float], size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """Return left, top, right and bottom, in pixels, of quadrilaterals: 8 numbers each, shares of width and height."""
    width, height = size
    xs, ys = [x * width for x in corners[0::2]], [y * height for y in corners[1::2]]
    quads = [(xs[i : i + 4], ys[i : i + 4]) for i in range(0, len(xs), 4)]
    return [(min(x), min(y), max(x), max(y)) for x, y in quads]


def _fixed(value: float) -> str:
    return str(round(value, 2))


def _normalised(embedding: list[float]) -> list[float]:
    length = math.hypot(*embedding)
    return [value / length for value in embedding] if length else embedding
