"""The endpoints for those who watch over a server: `/metrics` for Prometheus, `/health` for people and programs."""

import asyncio
from collections.abc import Callable

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from .link import Alive, Done
from .metrics import CONTENT_TYPE, Metrics
from .openapi import HEALTH_ANSWERS, METRICS_ANSWERS
from .readiness import Readiness
from .status import ServerStatus


class Monitor:
    """Hears what happens, and tells those who ask. Lives in the event loop of the front process."""

    def __init__(self, status: Callable[[], ServerStatus], readiness: Readiness) -> None:
        self.metrics = Metrics(CollectorRegistry(), status)
        self.readiness = readiness
        self._status = status

    def waited(self, kind: str, seconds: float) -> None:
        """A worker has taken a `photo` or a `search` that waited so long."""
        self.metrics.waited(kind, seconds)

    def heard(self, message: Done | Alive) -> None:
        """A worker has answered, or told of itself."""
        self.metrics.heard(message)
        if isinstance(message, Alive):
            self.readiness.heard(message.status)

    def add_to(self, app: FastAPI) -> None:
        """Add the endpoints to an application."""

        @app.get("/metrics", summary="Say how much is done", response_class=Response, responses=METRICS_ANSWERS)
        async def metrics() -> Response:
            return Response(self.metrics.text(), media_type=CONTENT_TYPE)

        @app.get("/health", summary="Say what works", response_class=JSONResponse, responses=HEALTH_ANSWERS)
        async def health() -> Response:
            # In a thread: the disk that it looks at may be slow.
            document = await asyncio.to_thread(self.readiness.snapshot().document, self._status())
            return JSONResponse(document, 200 if document["ready"] else 503)
