"""ArcFace face recognition (Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition").

image + five landmarks → upright face of 112 × 112 → embedding [512]
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ..engine import Engine, Session
from ..outputs import require_finite
from ..store import ModelFiles
from ..tensors import VALUES, look_up

FACE_SIZE = 112

_NORMALISED = np.tile((VALUES - np.float32(127.5)) / np.float32(127.5), (3, 1))

# Where ArcFace's training set has the landmarks of a face of 112 × 112, as x, y.
REFERENCE_LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float64,
)


class FaceRecognizer:
    """An ArcFace graph, ready to use."""

    def __init__(self, name: str, session: Session) -> None:
        self._name = name
        self._session = session

    @classmethod
    def load(cls, files: ModelFiles, engine: Engine) -> "FaceRecognizer":
        """Load the graph. Raises EngineError, or ValueError for a graph that takes no face of 112 × 112."""
        session = engine.load(files.graph)
        if session.inputs[0].shape[2:] != (FACE_SIZE, FACE_SIZE):
            raise ValueError(f"{files.graph} takes {session.inputs[0].shape}, an ArcFace [batch, 3, 112, 112]")
        return cls(files.name, session)

    @property
    def execution_provider(self) -> str:
        """What the graph runs on."""
        return self._session.execution_provider

    def warm(self) -> None:
        """Run once."""
        self.embed(np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8), REFERENCE_LANDMARKS[None].astype(np.float32))

    def embed(self, image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed the faces of RGB uint8 [H, W, 3 or 4] that have these landmarks [N, 5, 2].

        Returns float32 [N, D], not normalised. Raises ModelOutputError.
        """
        name = self._session.inputs[0].name
        faces = ({name: look_up(align(image, points), _NORMALISED)[None]} for points in landmarks)
        outputs = self._session.run_many(faces, expected=len(landmarks))
        embeddings = [require_finite(output.reshape(-1), self._name) for output, *_ in outputs]
        return np.stack(embeddings) if embeddings else np.empty((0, 0), np.float32)


def align(image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Cut a face out of RGB uint8 [H, W, 3 or 4], its landmarks [5, 2] on the reference's: uint8 [112, 112, 3 or 4]."""
    matrix = similarity_transform(landmarks.astype(np.float64), REFERENCE_LANDMARKS)
    return cv2.warpAffine(image, matrix, (FACE_SIZE, FACE_SIZE)).astype(np.uint8, copy=False)


def similarity_transform(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation, scale and shift that best take `source` to `target`, both [N, 2], as a [2, 3] matrix.

    Least squares in closed form: Umeyama 1991, "Least-squares estimation of transformation parameters
    between two point patterns", equations 40 to 42.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    source_centred, target_centred = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd(target_centred.T @ source_centred / len(source))
    # Never a mirror image: the last axis flips back where the best orthogonal matrix would be one.
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = u @ np.diag(signs) @ vt
    variance = source_centred.var(axis=0).sum()
    scale = (singular @ signs) / variance if variance else 1.0
    matrix = scale * rotation
    return np.column_stack([matrix, target_mean - matrix @ source_mean])
