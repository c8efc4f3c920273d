"""Answers one request: entries → plan → decoded input → each task's model → answer.

This is all of inference as the front sees it: a raw request in, an answer out.
"""

import logging
import os
import threading
from collections.abc import Iterable
from typing import Any

import cv2

from .answer import success
from .catalog import ModelType, Task
from .clip import embed_image, embed_text
from .downloads import Downloader
from .engine import EngineError, EngineMemoryError
from .engine_choice import choose
from .engines import make_engine
from .errors import ModelMemoryError, OutOfMemoryError, RequestError, failure
from .faces import find_faces
from .gpu import GpuMemory
from .images import Photo
from .loaders import loaders
from .machine import this_machine
from .memory import resident_bytes
from .messages import Answer, ModelChange, PredictRequest
from .models import Models, Retention
from .names import ModelNames, UnknownModelError
from .ocr import read_text
from .plan import Plan, plan_request
from .settings import Settings
from .status import WorkerEvents, WorkerStatus
from .store import ModelKey, ModelStore
from .timing import timed

log = logging.getLogger(__name__)

MOST_FETCHING = 16
"""So many requests may wait for models that are being downloaded without taking the places of others."""

_MEGABYTE = 1_000_000

PreloadedModel = tuple[Task, ModelType, str]


class Service:
    """The models and the names they answer to. Safe to use from several threads."""

    def __init__(self, settings: Settings, device_id: int = 0) -> None:
        """Raises ConfigurationError for settings that do not fit the machine or the models at hand."""
        store = ModelStore(settings.cache_folder)
        self.names = ModelNames(store, settings.model_aliases, settings.clip_model)
        self._most_pixels = settings.max_image_pixels
        self._orientation = settings.ocr_orientation
        self._device_id = device_id
        self._gpu = GpuMemory(device_id)
        self._choice = choose(settings, this_machine())
        engine = make_engine(self._choice, settings, device_id)
        self._scheduler = engine.scheduler
        self.room = self._scheduler.room if settings.request_threads is None else max(1, settings.request_threads)
        """So many photos are to be worked on side by side, and a search beside them."""

        self._places = threading.BoundedSemaphore(self.room)
        budget = settings.memory_budget_mb
        retention = Retention(settings.model_ttl, settings.text_model_ttl, budget * _MEGABYTE if budget else None)
        self._downloader = Downloader(store, settings.model_source, checkpoints=settings.clip_download_root)
        self.models = Models(store, self._downloader, engine, loaders(settings.max_batch_size), retention)

    def answer(self, request: PredictRequest) -> Answer:
        """Answer a request; whatever is wrong with it or with a model becomes an answer too."""
        try:
            plan = plan_request(request, self.names)
            if request.image is not None:
                return self._answer_photo(plan, request)
            assert plan.clip_text is not None
            assert request.text is not None
            with timed(Task.CLIP):
                self.models.fetch(plan.models)
                return success({Task.CLIP: embed_text(plan.clip_text, request.text, self.models)}, None)
        except RequestError as error:
            log.log(logging.ERROR if error.status >= 500 else logging.INFO, "%d: %s", error.status, error.detail)
            short = isinstance(error, ModelMemoryError | OutOfMemoryError)
            return failure(error.status, error.detail, out_of_memory=short)
        except EngineError as error:
            log.error("Inference failed: %s", error)
            short = isinstance(error, EngineMemoryError)
            return failure(500, "Inference failed; the server's log says why", out_of_memory=short)

    def status(self, busy: int) -> WorkerStatus:
        """Say what this process holds and does; so many requests are being worked on."""
        return WorkerStatus(
            pid=os.getpid(),
            device_id=self._device_id,
            engine=str(self._choice),
            precision=self._choice.precision,
            models=self.models.statuses(),
            failures=self.models.failures(),
            memory_bytes=resident_bytes(),
            vram_bytes=self._gpu.used_bytes() if self._choice.device == "cuda" else None,
            loading_s=self.models.loading_seconds(),
            busy=busy,
            fetching=min(self.models.fetching(), MOST_FETCHING),
        )

    def events(self) -> WorkerEvents:
        """Say what happened since this was asked last."""
        done, failed = self._downloader.take_counts()
        return WorkerEvents(self._scheduler.take_batches(), done, failed)

    def preload(self, models: Iterable[PreloadedModel]) -> list[PreloadedModel]:
        """Load and warm models, and let them stay. One that cannot be loaded is logged; return those."""
        failed = []
        for task, kind, name in models:
            try:
                self.models.preload(self.names.key(task, kind, name))
            except (UnknownModelError, RequestError, EngineError) as error:
                log.error("Preloading %s (%s) failed: %s", name, kind, error)
                failed.append((task, kind, name))
        return failed

    def change(self, change: ModelChange) -> Answer:
        """Load a model, by a name that requests may use, or unload one, by its own; answer when it is done."""
        task, kind = Task(change.task), ModelType(change.type)
        try:
            if change.load:
                self.models.preload(self.names.key(task, kind, change.name))
            else:
                self.models.unload(ModelKey(task, change.name, kind))
        except UnknownModelError as error:
            return failure(422, str(error))
        except RequestError as error:
            return failure(error.status, error.detail)
        except EngineError as error:
            log.error("Warming %s (%s) failed: %s", change.name, kind, error)
            return failure(500, "Inference failed; the server's log says why")
        return Answer(200, b"{}")

    def _answer_photo(self, plan: Plan, request: PredictRequest) -> Answer:
        try:
            photo = Photo(request.image or b"", self._most_pixels, upright=request.upright)
            self.models.fetch(plan.models)  # what waits holds no pixels
            with self._places, self._scheduler.photo():
                return success(self._run(plan, photo), photo.size)
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            cause = f" ({error})" if isinstance(error, EngineMemoryError) else ""
            log.warning("Out of memory on an image%s; fewer MACHINE_LEARNING_REQUEST_THREADS need less", cause)
            raise OutOfMemoryError("The image takes more memory than there is") from None

    def _run(self, plan: Plan, photo: Photo) -> dict[str, Any]:
        results: dict[str, Any] = {}
        if plan.faces is not None:
            with timed(Task.FACES):
                results[Task.FACES] = find_faces(plan.faces, photo.whole(), self.models)
        if plan.ocr is not None:
            with timed(Task.OCR):
                results[Task.OCR] = read_text(plan.ocr, photo.whole(), self.models, orientation=self._orientation)
        # Last: alone it does with less than the whole photo.
        if plan.clip_image is not None:
            with timed(Task.CLIP):
                results[Task.CLIP] = embed_image(plan.clip_image, photo, self.models)
        return results
