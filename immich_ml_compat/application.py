"""The front's application: the HTTP face, what answers behind it, and what stands beside and before it.

ByPort → Access → Traced → HTTP face → plan → Backend → a worker
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from fastapi import FastAPI
from starlette.types import ASGIApp

from .access import Access
from .body import BodyLimits
from .by_port import ByPort
from .catalog import ModelType, Task
from .dispatch import Backend
from .engine_choice import choose
from .errors import RequestError, failure
from .gateway import GatewayDialect
from .http_api import create_app
from .machine import this_machine
from .memory import resident_bytes
from .messages import Answer, ModelChange, PredictRequest
from .monitoring import Monitor
from .mt_photos import PATHS, MtPhotos, Requests, create_mt_photos, create_mt_photos_app
from .names import ModelNames, UnknownModelError
from .plan import plan_request
from .readiness import Readiness
from .room import BodyRoom
from .settings import Settings
from .status import ServerStatus
from .store import ModelStore
from .trace import TRACE
from .tracing import Traced
from .ui_api import create_ui

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Front:
    """Plans requests and has the workers answer them."""

    names: ModelNames
    backend: Backend
    readiness: Readiness

    async def answer(self, request: PredictRequest) -> Answer:
        """Answer a request. What is wrong with it is said here: no worker has to be started for that."""
        try:
            plan = plan_request(request, self.names)
        except RequestError as error:
            log.info("%d: %s", error.status, error.detail)
            return failure(error.status, error.detail)
        if trace := TRACE.get():
            trace.task = "+".join(plan.tasks)
        self.readiness.asked(plan.models)
        return await self.backend.answer(request)

    async def change(self, change: ModelChange) -> Answer:
        """Load a model, by a name that requests may use, or unload one."""
        try:
            if change.load:
                self.names.key(Task(change.task), ModelType(change.type), change.name)
        except UnknownModelError as error:
            return failure(422, str(error))
        return await self.backend.change(change)

    async def free(self) -> bool:
        """Unload the models that are not in use and were not preloaded; return whether that can be ordered here."""
        loaded = {
            (model.task, model.type, model.name)
            for worker in self.backend.status().workers
            for model in worker.models
            if not model.stays
        }
        answers = [await self.backend.change(ModelChange(False, *model)) for model in sorted(loaded)]
        return all(answer.status != 501 for answer in answers)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Open the queue, and close it in the end."""
        self.backend.open()
        yield
        await self.backend.close()


def build_app(settings: Settings, names: ModelNames, backend: Backend, mt_photos_port: int | None = None) -> ASGIApp:
    """Put the HTTP face before what answers, and a monitor beside them.

    MT Photos' API gets that port for itself, or is part of the face where it is given none.
    """
    store, choice = ModelStore(settings.cache_folder), choose(settings, this_machine())
    readiness = Readiness(store, choice, [names.key(*model) for model in settings.preload.models()])
    front = Front(names, backend, readiness)
    limits = BodyLimits(settings.max_body_mb, settings.header_timeout_s)
    room = BodyRoom(settings.queue_mb)

    def status() -> ServerStatus:
        known = backend.status()
        return replace(known, uploads_waiting=room.waiting, upload_bytes=room.held, memory_bytes=resident_bytes())

    def trouble() -> str | None:
        return backend.trouble

    backend.observer = monitor = Monitor(status, readiness)
    traced = partial(Traced, finished=monitor.metrics.finished)
    answer = GatewayDialect(front.answer, settings.mt_photos_ocr_model) if settings.legacy_ocr else front.answer
    app = create_app(answer, trouble, front.lifespan, limits, room, timed=settings.ui)
    monitor.add_to(app)
    if settings.ui:
        app.include_router(create_ui(status, front.change, store, limits))
    if not settings.mt_photos:
        return guarded(traced(app), settings)
    mt_photos = create_mt_photos(
        MtPhotos(front.answer, front.free, Requests(settings), _api_key(settings), choice.device, limits, room)
    )
    if mt_photos_port is None:
        app.include_router(mt_photos)
        return guarded(traced(app, paths=("/predict", *PATHS)), settings)
    own = create_mt_photos_app(mt_photos, trouble, choice.device)
    return ByPort(guarded(traced(app), settings), {mt_photos_port: traced(own, paths=PATHS)})


def guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Put the access token, where there is one, before an application."""
    if settings.access_token is None:
        return app
    log.info("Only requests with the access token are answered")
    return Access(app, settings.access_token.get_secret_value())


def _api_key(settings: Settings) -> str | None:
    return settings.mt_photos_api_key.get_secret_value() if settings.mt_photos_api_key else None
