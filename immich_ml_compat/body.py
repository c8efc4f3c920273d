"""The body of a request, received within limits, and the answer to one that is beyond them."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from .room import SMALL, ClientLeftError, Leaving, Place

_MEGABYTE = 1_000_000
_LINGER_S = 1.0

_LEAST_RATE = 32_000
"""Bytes per second at which a body must come, after a while, for others to wait for it: a few that drip hold all."""


@dataclass(frozen=True)
class BodyLimits:
    """How much a client may send and how long it may pause, with the settings' defaults."""

    most_mb: int = 64
    """Megabytes of a body."""

    patience_s: float = 30
    """Seconds without a byte of a body that is awaited."""


class BodyError(Exception):
    """A body that is not received to its end."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def receive_body(request: Request, limits: BodyLimits, place: Place) -> AsyncGenerator[bytes, None]:
    """Return a body's pieces as they come, once there is room for it, which `place` takes.

    Raises BodyError at once where its announced length is too much. On the way it raises BodyError for one that turns
    out so, for a client that goes silent, and for one that drips while others wait, and ClientDisconnect for one that
    leaves.
    """
    # A body that does not say its length is small until it is not.
    length = int(request.headers.get("content-length", SMALL))
    _check_length(length if "content-length" in request.headers else 0, limits)
    return _pieces(request, limits, length, place)


async def read_small(request: Request, limits: BodyLimits, place: Place, most_bytes: int) -> bytes:
    """Receive a body of few bytes whole. Raises as `receive_body` does, and BodyError beyond `most_bytes`."""
    body = b""
    async for piece in receive_body(request, limits, place):
        body += piece
        if len(body) > most_bytes:  # to say what is wrong with 64 MB of JSON takes minutes
            raise BodyError(413, f"The body has more than {most_bytes} bytes, the most that is taken here")
    return body


async def _pieces(request: Request, limits: BodyLimits, length: int, place: Place) -> AsyncGenerator[bytes, None]:
    await _take(place, length, request)
    received, held_back_until, before = 0, time.monotonic(), 0
    pieces = request.stream()
    while True:
        try:
            async with asyncio.timeout(limits.patience_s):
                piece = await anext(pieces, None)
        except TimeoutError:
            raise BodyError(
                408,
                f"No byte of the body came for {limits.patience_s:g} s, the most that "
                "MACHINE_LEARNING_HEADER_TIMEOUT_S allows",
            ) from None
        if piece is None:
            place.give_back(keep=received)
            return
        received += len(piece)
        _check_length(received, limits)
        seconds = time.monotonic() - held_back_until
        if place.is_waited_for and seconds > limits.patience_s and received - before < _LEAST_RATE * seconds:
            raise BodyError(
                408, f"The body came with less than {_LEAST_RATE} bytes per second while others waited; send it again"
            )
        if received > place.held:
            await _take(place, limits.most_mb * _MEGABYTE, request)
            held_back_until, before = time.monotonic(), received
        yield piece


async def _take(place: Place, size: int, request: Request) -> None:
    leaving: Leaving | None = getattr(request.state, "leaving", None)  # our own connections have it
    try:
        await place.take(size, leaving)
    except ClientLeftError:
        raise ClientDisconnect from None


def _check_length(length: int, limits: BodyLimits) -> None:
    if length > limits.most_mb * _MEGABYTE:
        raise BodyError(
            413, f"The body is larger than {limits.most_mb} MB, the most that MACHINE_LEARNING_MAX_BODY_MB allows"
        )


class LastAnswer(JSONResponse):
    """An error after which the connection is closed, as the rest of the request's body is still under way.

    What was sent by then is dropped for a moment: a socket closed before it is reset, and the client, still writing,
    might never see the answer (RFC 9112, 9.6).
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__({"detail": detail}, status, {"connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it whole, wait until the client has left, and end it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        await send({"type": "http.response.body"})
