"""Faces, by insightface's own classes for SCRFD and ArcFace graphs."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from insightface.model_zoo import ArcFaceONNX, RetinaFace
from insightface.utils.face_align import norm_crop
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from PIL import Image

from .clip import vector
from .sessions import load


def to_bgr(image: Image.Image) -> NDArray[np.uint8]:
    """Give an RGB image as OpenCV has it: uint8 [H, W, 3], blue first."""
    return np.asarray(cv2.cvtColor(np.array(image), cv2.COLOR_RGB2BGR), np.uint8)


class _WithoutBatchAxis:
    """A session whose outputs lose their batch axis: insightface's class expects none, as stock graphs have none."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def run(self, names: list[str], inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Run the graph on one image."""
        return [output[0] for output in self._session.run(names, inputs)]


class FaceDetector:
    """SCRFD on a 640 × 640 letterbox."""

    def __init__(self, folder: Path) -> None:
        """Load `<folder>/detection`."""
        session = load(folder / "detection/model.onnx")
        batched = len(session.get_outputs()[0].shape) == 3
        self._model = RetinaFace(session=_WithoutBatchAxis(session) if batched else session)
        self._model.prepare(ctx_id=0, det_thresh=0.7, input_size=(640, 640))

    def __call__(self, image: Image.Image, options: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
        """Find faces: rounded boxes [N, 4], scores [N], landmarks [N, 5, 2]."""
        self._model.det_thresh = options.get("minScore", self._model.det_thresh)
        boxes, landmarks = self._model.detect(to_bgr(image))
        return {"boxes": boxes[:, :4].round(), "scores": boxes[:, 4], "landmarks": landmarks}


class FaceRecognizer:
    """ArcFace on aligned crops, all faces of a photo in one batch."""

    def __init__(self, folder: Path) -> None:
        """Load `<folder>/recognition`."""
        graph = folder / "recognition/model.onnx"
        self._model = ArcFaceONNX(str(graph), session=load(graph))

    def __call__(
        self, image: Image.Image, options: dict[str, Any], faces: dict[str, NDArray[np.float32]]
    ) -> list[dict[str, Any]]:
        """Embed the faces that were found."""
        if len(faces["boxes"]) == 0:
            return []
        pixels = to_bgr(image)
        embeddings = self._model.get_feat([norm_crop(pixels, landmarks) for landmarks in faces["landmarks"]])
        return [
            {"boundingBox": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)), "embedding": vector(e), "score": s}
            for box, e, s in zip(faces["boxes"], embeddings, faces["scores"], strict=True)
        ]
