"""Gives every request an id, and tells how those that run models ended."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .trace import TRACE, Trace

log = logging.getLogger(__name__)

HEADER = b"x-request-id"

_SANE = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # in a log a stranger could write lines of his own otherwise

Finished = Callable[[str, int, float], None]
"""Told of each request to run models that is over: its task, its status, and the seconds since its head was read."""


class Traced:
    """An ASGI application that gives every request to another one an id, and tells how those that run models ended."""

    def __init__(self, app: ASGIApp, finished: Finished, paths: Collection[str] = ("/predict",)) -> None:
        """`paths` are those that run models."""
        self._app = app
        self._finished = finished
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; its answer bears the id as X-Request-ID."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(_sane_id(scope) or secrets.token_hex(8))
        TRACE.set(trace)  # for good: this context is the request's own, and uvicorn logs what failed in it
        start, status = time.monotonic(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (HEADER, trace.id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if scope["method"] == "POST" and scope["path"].removeprefix(scope.get("root_path", "")) in self._paths:
                seconds = time.monotonic() - start
                log.debug("%s: %d after %.3f s", trace.task, status, seconds)
                self._finished(trace.task, status, seconds)


def _sane_id(scope: Scope) -> str | None:
    """Return the id that a request came with, where it is one."""
    given: list[bytes] = [value for name, value in scope["headers"] if name == HEADER]
    return given[0].decode() if len(given) == 1 and _SANE.fullmatch(given[0]) else None
