"""OCR: a photo to the lines of text in it, in reading order."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models import Models
from ..plan import Ocr
from .detection import TextDetector
from .orientation import read_page
from .reading_order import reading_order
from .recognition import TextRecognizer


def read_text(step: Ocr, image: Image.Image, models: Models, *, orientation: bool) -> Any:
    """Return the lines of an RGB image as the contract has them: corners as shares of its width and height.

    `orientation` says whether to look for a turned page where the request does not.
    """
    with models.use(step.detector, TextDetector) as detector:
        boxes = detector.detect(image, step.min_box_score, step.max_resolution, step.min_resolution)
    if step.recognizer is None:
        boxes = boxes[reading_order(boxes.quads)]
        return {"boxes": boxes.quads, "scores": boxes.scores}
    if not len(boxes.scores):
        return {"box": [], "text": [], "boxScore": [], "textScore": []}
    if step.orientation is not None:
        orientation = step.orientation
    with models.use(step.recognizer, TextRecognizer) as recognizer:
        readings, half_turned = read_page(image, boxes.quads, recognizer, orientation=orientation)
    kept = [i for i, reading in enumerate(readings) if reading.text.strip() and reading.score > step.min_text_score]
    size = np.array(image.size, np.float32)
    order = reading_order(turn(boxes.quads[kept], size) if half_turned else boxes.quads[kept])
    lines = [kept[i] for i in order]
    return {
        "box": (boxes.quads[lines] / size).reshape(-1),
        "text": [readings[i].text for i in lines],
        "boxScore": boxes.scores[lines],
        "textScore": np.array([readings[i].score for i in lines], np.float32),
    }


def turn(quads: NDArray[np.float32], size: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return boxes [N, 4, 2] of a page of (width, height) pixels as they lie after half a turn of it."""
    return np.roll(size - quads, -2, axis=1)
