"""Answers one request: entries → plan → decoded input → each task's model → answer.

This is all of inference as the HTTP face sees it: a raw request in, an answer out.
"""

import logging
from typing import Any

from PIL import Image

from . import answer
from .catalog import Task
from .clip import embed_image, embed_text
from .downloads import Downloader
from .engine import EngineError
from .engine.onnxruntime import OnnxRuntimeEngine
from .errors import InvalidInputError, RequestError
from .faces import find_faces
from .images import decode
from .messages import Answer, PredictRequest
from .models import Models
from .names import ModelNames
from .ocr import read_text
from .plan import Plan, parse_plan
from .settings import ConfigurationError, Settings
from .store import ModelStore

log = logging.getLogger(__name__)


class Service:
    """The models and the names they answer to. Safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError for settings that do not fit the machine or the models at hand."""
        self._settings = settings
        store = ModelStore(settings.cache_folder)
        self._names = ModelNames(store, settings.model_aliases)
        engine = OnnxRuntimeEngine(
            settings.device, settings.model_intra_op_threads, settings.model_inter_op_threads, settings.model_arena
        )
        try:
            log.info("Models run in ONNX Runtime on %s", engine.execution_provider)
        except EngineError as error:
            raise ConfigurationError(f"MACHINE_LEARNING_DEVICE={settings.device}: {error}") from error
        self._models = Models(store, engine, Downloader(store, settings.model_source))

    def answer(self, request: PredictRequest) -> Answer:
        """Answer a request; whatever is wrong with it or with a model becomes an answer too."""
        try:
            plan = parse_plan(request.entries, self._names)
            if request.image is not None:
                return self._answer_image(plan, request.image)
            if request.text:
                return self._answer_text(plan, request.text)
            raise InvalidInputError("Either image or text must be provided")
        except RequestError as error:
            log.log(logging.ERROR if error.status >= 500 else logging.INFO, "%d: %s", error.status, error.detail)
            return answer.failure(error.status, error.detail)
        except EngineError as error:
            log.error("Inference failed: %s", error)
            return answer.failure(500, "Inference failed; the server's log says why")

    def _answer_image(self, plan: Plan, data: bytes) -> Answer:
        if plan.clip_text is not None:
            raise InvalidInputError(f"Model '{plan.clip_text.model.name}' of type textual takes a text, not an image")
        image = decode(data)
        return answer.success(self._run(plan, image), image.size)

    def _answer_text(self, plan: Plan, text: str) -> Answer:
        if plan.clip_text is None or plan.needs_image:
            raise InvalidInputError("The request has a text, but a task in it takes an image")
        return answer.success({Task.CLIP: embed_text(plan.clip_text, text, self._models)}, None)

    def _run(self, plan: Plan, image: Image.Image) -> dict[str, Any]:
        results: dict[str, Any] = {}
        if plan.clip_image is not None:
            results[Task.CLIP] = embed_image(plan.clip_image, image, self._models)
        if plan.faces is not None:
            batch = self._settings.max_batch_size.facial_recognition
            results[Task.FACES] = find_faces(plan.faces, image, self._models, batch)
        if plan.ocr is not None:
            results[Task.OCR] = read_text(
                plan.ocr,
                image,
                self._models,
                max_batch_size=self._settings.max_batch_size.ocr,
                orientation=self._settings.ocr_orientation,
            )
        return results
