"""Which class answers for which task and type of model: a new model family adds its line here."""

from .catalog import ModelType, Task
from .clip.textual import ClipTextual
from .clip.visual import ClipVisual
from .engine import Engine
from .engine.scheduler import scheduled
from .faces.detection import FaceDetector
from .faces.recognition import FaceRecognizer
from .models import Loader, Loaders, Model
from .ocr.detection import TextDetector
from .ocr.recognition import TextRecognizer
from .settings import MaxBatchSize
from .store import ModelFiles

LINES = 8
"""The most lines of text in a batch: each eighth column of their pixels gives a row of all characters."""


def loaders(max_batch_size: MaxBatchSize) -> Loaders:
    """Return how each kind of model is loaded."""
    return {
        (Task.CLIP, ModelType.VISUAL): ClipVisual.load,
        (Task.CLIP, ModelType.TEXTUAL): _with(ClipTextual.load, urgent=True),
        (Task.FACES, ModelType.DETECTION): FaceDetector.load,
        (Task.FACES, ModelType.RECOGNITION): _with(FaceRecognizer.load, max_batch=max_batch_size.facial_recognition),
        (Task.OCR, ModelType.DETECTION): TextDetector.load,
        (Task.OCR, ModelType.RECOGNITION): _with(TextRecognizer.load, max_batch=max_batch_size.ocr or LINES),
    }


def _with(load: Loader, *, max_batch: int | None = None, urgent: bool = False) -> Loader:
    def loader(files: ModelFiles, engine: Engine) -> Model:
        return load(files, scheduled(engine, max_batch=max_batch, urgent=urgent))

    return loader
