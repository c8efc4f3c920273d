"""SCRFD face detection (Guo et al. 2021, "Sample and Computation Redistribution for Efficient Face Detection").

image → letterbox 640 × 640 → scores, distances, landmark offsets of every anchor → boxes → NMS
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..engine import Array, Engine, Session
from ..outputs import require_finite
from ..store import ModelFiles
from ..tensors import VALUES, look_up

INPUT_SIZE = 640
STRIDES = (8, 16, 32)
ANCHORS_PER_CELL = 2
NMS_THRESHOLD = 0.4
MAX_FACES = 1000

_LANDMARKS = 5
_NORMALISED = np.tile((VALUES - np.float32(127.5)) * np.float32(1 / 128), (3, 1))


@dataclass(frozen=True)
class DetectedFaces:
    """N faces in pixels of the image that was given, best first."""

    boxes: NDArray[np.float32]
    """Left, top, right, bottom; not clamped to the image: [N, 4]."""

    scores: NDArray[np.float32]
    """[N], 0…1."""

    landmarks: NDArray[np.float32]
    """Eyes, nose, corners of the mouth, as x, y: [N, 5, 2]."""


class FaceDetector:
    """An SCRFD graph with landmarks, ready to use."""

    def __init__(self, name: str, session: Session) -> None:
        self._name = name
        self._session = session
        self._centres = np.concatenate([_anchor_centres(stride) for stride in STRIDES])
        self._strides = np.concatenate(
            [np.full(ANCHORS_PER_CELL * (INPUT_SIZE // stride) ** 2, stride, np.float32) for stride in STRIDES]
        )

    @classmethod
    def load(cls, files: ModelFiles, engine: Engine) -> "FaceDetector":
        """Load the graph. Raises EngineError, or ValueError for a graph that is no SCRFD with landmarks."""
        session = engine.load(files.graph)
        if len(session.outputs) != 3 * len(STRIDES):
            raise ValueError(f"{files.graph} has {len(session.outputs)} outputs, an SCRFD with landmarks has 9")
        return cls(files.name, session)

    @property
    def execution_provider(self) -> str:
        """What the graph runs on."""
        return self._session.execution_provider

    def warm(self) -> None:
        """Run once."""
        self.detect(np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8), 1.0)

    def detect(self, image: NDArray[np.uint8], min_score: float) -> DetectedFaces:
        """Find the faces in RGB uint8 [H, W, 3 or 4] that score at least `min_score`, at most MAX_FACES."""
        tensor, scale = preprocess(image)
        outputs = self._session.run({self._session.inputs[0].name: tensor})
        scores = self._gather(outputs, 0, 1)[:, 0]
        chosen = np.flatnonzero(scores >= min_score)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        centres, strides = self._centres[chosen], self._strides[chosen, None]
        distances = self._gather(outputs, 1, 4)[chosen] * strides
        corners = np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)
        boxes = (corners / scale).astype(np.float32)
        kept = non_maximum_suppression(boxes, NMS_THRESHOLD, MAX_FACES)
        offsets = self._gather(outputs, 2, 2 * _LANDMARKS)[chosen[kept]] * strides[kept]
        landmarks = (centres[kept, None] + offsets.reshape(-1, _LANDMARKS, 2)) / scale
        return DetectedFaces(boxes[kept], scores[chosen[kept]], landmarks.astype(np.float32))

    def _gather(self, outputs: list[Array], kind: int, width: int) -> NDArray[np.float32]:
        """Join one kind of output over the strides: [anchors, width]. Some exports have a batch axis, some none."""
        levels = outputs[kind * len(STRIDES) : (kind + 1) * len(STRIDES)]
        return require_finite(np.concatenate([level.reshape(-1, width) for level in levels]), self._name)


def preprocess(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Letterbox RGB uint8 [H, W, 3 or 4] at the top left of a black 640 × 640, and normalise.

    Returns float32 [1, 3, 640, 640] and the scale from the image's pixels to the tensor's.
    """
    height, width = image.shape[:2]
    if height > width:
        scaled_height, scaled_width = INPUT_SIZE, max(1, int(INPUT_SIZE / (height / width)))
    else:
        scaled_height, scaled_width = max(1, int(INPUT_SIZE * (height / width))), INPUT_SIZE
    scaled = cv2.resize(image, (scaled_width, scaled_height)).astype(np.uint8, copy=False)
    tensor = np.empty((1, 3, INPUT_SIZE, INPUT_SIZE), np.float32)
    look_up(scaled, _NORMALISED, tensor[0])
    tensor[..., scaled_height:, :] = tensor[..., scaled_width:] = _NORMALISED[0, 0]
    return tensor, scaled_height / height


def non_maximum_suppression(boxes: NDArray[np.float32], threshold: float, limit: int) -> NDArray[np.intp]:
    """Return the indices of the boxes to keep, at most `limit`, of [N, 4] sorted best first.

    A box goes when its intersection over union with a better one is over `threshold`. Pixels count as
    areas, so that a box of equal corners covers one (as in the SCRFD reference).
    """
    left, top, right, bottom = boxes.T
    areas = (right - left + 1) * (bottom - top + 1)
    kept: list[int] = []
    remaining = np.arange(len(boxes))
    while remaining.size and len(kept) < limit:
        best, rest = remaining[0], remaining[1:]
        kept.append(int(best))
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest]) + 1
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest]) + 1
        intersection = np.maximum(width, 0) * np.maximum(height, 0)
        overlap = intersection / (areas[best] + areas[rest] - intersection)
        remaining = rest[overlap <= threshold]
    return np.array(kept, dtype=np.intp)


def _anchor_centres(stride: int) -> NDArray[np.float32]:
    """Centres of a stride's anchors in the tensor's pixels, as x, y, row by row: [anchors, 2]."""
    cells = np.arange(INPUT_SIZE // stride, dtype=np.float32) * stride
    grid = np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2)
    return np.repeat(grid, ANCHORS_PER_CELL, axis=0)
