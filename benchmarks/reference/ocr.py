"""OCR: Pillow resizes and cuts out, RapidOCR finds boxes in the detector's map and recognises lines."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rapidocr.ch_ppocr_rec.main as rapidocr_recognition
from numpy.typing import NDArray
from PIL import Image
from rapidocr.ch_ppocr_det.utils import DBPostProcess
from rapidocr.ch_ppocr_rec import TextRecInput, TextRecognizer
from rapidocr.utils.typings import EngineType, LangRec

from .faces import to_bgr
from .sessions import load

# RapidOCR makes a drawing object with each answer, which looks for a font. The stock server does without, too.
rapidocr_recognition.VisRes = lambda **_: None

_NOTHING: dict[str, Any] = {"boxes": np.empty((0, 4, 2), np.float32), "scores": np.empty(0, np.float32)}


class TextDetector:
    """The DB detector."""

    def __init__(self, folder: Path) -> None:
        """Load `<folder>/detection`."""
        self._session = load(folder / "detection/model.onnx")
        self._postprocess = DBPostProcess(0.3, 0.5, 1000, 1.6, "fast", use_dilation=True)

    def __call__(self, image: Image.Image, options: dict[str, Any]) -> dict[str, Any]:
        """Find text: corners [N, 4, 2] in pixels, scores [N]."""
        if min(image.size) < 32:
            return _NOTHING
        self._postprocess.box_thresh = options.get("minScore", 0.5)
        pixels = self._preprocess(image, options.get("maxResolution", 736))
        probabilities = self._session.run(None, {"x": pixels})[0]
        boxes, scores = self._postprocess(probabilities, (image.height, image.width))
        return {"boxes": np.array(boxes), "scores": np.array(scores, np.float32)} if len(boxes) else _NOTHING

    @staticmethod
    def _preprocess(image: Image.Image, most: int) -> NDArray[np.float32]:
        ratio = min(1.0, most / min(image.size))
        width, height = (round(int(side * ratio) / 32) * 32 for side in image.size)
        scaled = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels: NDArray[Any] = cv2.cvtColor(np.array(scaled, np.float32), cv2.COLOR_RGB2BGR)
        pixels *= np.float32(1 / 127.5)
        pixels -= np.float32(1)
        return np.expand_dims(pixels.transpose(2, 0, 1), 0)


class _Options(dict[str, Any]):
    """What RapidOCR asks its configuration for: some as items, some as attributes."""

    engine_type = EngineType.ONNXRUNTIME
    lang_type = LangRec.CH
    font_path = None


class LineRecognizer:
    """The CTC recogniser, six lines a batch, by width."""

    def __init__(self, folder: Path) -> None:
        """Load `<folder>/recognition`."""
        session = load(folder / "recognition/model.onnx")
        self._model = TextRecognizer(_Options(session=session, rec_batch_num=6, rec_img_shape=(3, 48, 320)))

    def __call__(self, image: Image.Image, options: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """Read the boxes that were found."""
        boxes, box_scores = found["boxes"], found["scores"]
        if len(boxes) == 0:
            return {"box": [], "text": [], "boxScore": [], "textScore": []}
        read = self._model(TextRecInput(img=[crop(image, corners) for corners in boxes]))
        scores = np.array(read.scores)
        kept = np.flatnonzero(scores > options.get("minScore", 0.9))
        relative = boxes.astype(np.float32) / np.array(image.size, np.float32)
        return {
            "box": relative.reshape(-1, 8)[kept].reshape(-1),
            "text": [read.txts[i] for i in kept],
            "boxScore": box_scores[kept],
            "textScore": scores[kept],
        }


def crop(image: Image.Image, corners: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Cut out a line, straightened, and upright where it is far higher than wide: BGR uint8 [H, W, 3]."""
    top, right, bottom, left = (float(np.linalg.norm(corners[i] - corners[(i + 1) % 4])) for i in range(4))
    width, height = int(max(top, bottom)), int(max(left, right))
    rectangle = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    coefficients = cv2.getPerspectiveTransform(rectangle, corners.astype(np.float32)).flatten()[:8]
    line = image.transform(
        (width, height), Image.Transform.PERSPECTIVE, tuple(map(float, coefficients)), Image.Resampling.BICUBIC
    )
    if line.height / line.width >= 1.5:
        line = line.rotate(90, expand=True)
    return to_bgr(line)
