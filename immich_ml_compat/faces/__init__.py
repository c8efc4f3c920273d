"""Facial recognition: a photo to its faces, each with an embedding."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..answer import embedding_text
from ..models import Models
from ..plan import Faces
from ..tensors import pixels_of
from .detection import FaceDetector
from .recognition import FaceRecognizer


def find_faces(step: Faces, image: Image.Image, models: Models) -> Any:
    """Return the faces of an RGB image as the contract has them, best first."""
    with pixels_of(image) as pixels:
        return _find_faces(step, pixels, models)


def _find_faces(step: Faces, pixels: NDArray[np.uint8], models: Models) -> Any:
    with models.use(step.detector, FaceDetector) as detector:
        faces = detector.detect(pixels, step.min_score)
    boxes = np.round(faces.boxes) + np.float32(0)  # no -0.0
    if step.recognizer is None:
        return {"boxes": boxes, "scores": faces.scores, "landmarks": faces.landmarks}
    if not len(boxes):
        return []
    with models.use(step.recognizer, FaceRecognizer) as recognizer:
        embeddings = recognizer.embed(pixels, faces.landmarks)
    return [
        {
            "boundingBox": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            "embedding": embedding_text(embedding),
            "score": score,
        }
        for box, embedding, score in zip(boxes, embeddings, faces.scores, strict=True)
    ]
