"""Which class answers for which task and type of model: a new model family adds its line here."""

from functools import partial

from .catalog import ModelType, Task
from .clip.textual import ClipTextual
from .clip.visual import ClipVisual
from .faces.detection import FaceDetector
from .faces.recognition import FaceRecognizer
from .models import Loaders
from .ocr.detection import TextDetector
from .ocr.recognition import TextRecognizer
from .settings import MaxBatchSize


def loaders(max_batch_size: MaxBatchSize) -> Loaders:
    """Return how each kind of model is loaded."""
    return {
        (Task.CLIP, ModelType.VISUAL): ClipVisual.load,
        (Task.CLIP, ModelType.TEXTUAL): ClipTextual.load,
        (Task.FACES, ModelType.DETECTION): FaceDetector.load,
        (Task.FACES, ModelType.RECOGNITION): partial(
            FaceRecognizer.load, max_batch_size=max_batch_size.facial_recognition
        ),
        (Task.OCR, ModelType.DETECTION): TextDetector.load,
        (Task.OCR, ModelType.RECOGNITION): partial(TextRecognizer.load, max_batch_size=max_batch_size.ocr),
    }
