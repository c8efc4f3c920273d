"""Facial recognition: a photo to its faces, each with an embedding."""

from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..answer import embedding_text
from ..models import Models
from ..plan import Faces
from .detection import FaceDetector
from .recognition import DEFAULT_BATCH_SIZE, FaceRecognizer


def find_faces(step: Faces, image: Image.Image, models: Models, max_batch_size: int | None) -> Any:
    """Return the faces of an RGB image as the contract has them, best first."""
    pixels = np.asarray(image)
    faces = models.get(step.detector, FaceDetector.load).detect(pixels, step.min_score)
    boxes = np.round(faces.boxes) + np.float32(0)  # no -0.0
    if step.recognizer is None:
        return {"boxes": boxes, "scores": faces.scores, "landmarks": faces.landmarks}
    load = partial(FaceRecognizer.load, max_batch_size=max_batch_size or DEFAULT_BATCH_SIZE)
    if not len(boxes):
        return []
    embeddings = models.get(step.recognizer, load).embed(pixels, faces.landmarks)
    return [
        {
            "boundingBox": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            "embedding": embedding_text(embedding),
            "score": score,
        }
        for box, embedding, score in zip(boxes, embeddings, faces.scores, strict=True)
    ]
