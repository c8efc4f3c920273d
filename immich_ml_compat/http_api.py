"""The HTTP face: the endpoints Immich calls, and nothing about models."""

import asyncio
import codecs
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Lifespan

from . import __version__
from .body import BodyError, BodyLimits, LastAnswer, receive_body
from .messages import Answer, PredictRequest
from .openapi import PING_ANSWERS, PREDICT_ANSWERS, PREDICT_BODY
from .room import BodyRoom, Place

Answerer = Callable[[PredictRequest], Awaitable[Answer]]
"""Gets the answer to a request; it may take long."""

Health = Callable[[], str | None]
"""Says why nothing can be answered at present, or None."""


def create_app(
    answer: Answerer,
    health: Health,
    lifespan: Lifespan[FastAPI] | None = None,
    limits: BodyLimits = BodyLimits(),  # noqa: B008 - frozen
    room: BodyRoom | None = None,
    *,
    timed: bool = False,
) -> FastAPI:
    """Build the application around what answers its requests.

    Bodies take their place in `room`; `timed` answers say what took how long.
    """
    room = room or BodyRoom()
    app = FastAPI(title="Immich ML", version=__version__, lifespan=lifespan)

    @app.get("/", summary="Say who is here")
    async def root() -> dict[str, str]:
        return {"message": "Immich ML"}

    @app.get("/ping", summary="Say that the server is up", response_class=PlainTextResponse, responses=PING_ANSWERS)
    async def ping() -> Response:
        trouble = health()
        return PlainTextResponse("pong") if trouble is None else PlainTextResponse(trouble, 503)

    @app.post(
        "/predict",
        summary="Run models on an image or a text",
        openapi_extra=PREDICT_BODY,
        responses=PREDICT_ANSWERS,
    )
    async def predict(request: Request) -> Response:
        with room.place() as place:
            result = await unless_gone(answer(await read_request(request, limits, place)), request)
        if result is None:
            return Response(status_code=499)  # nobody reads it
        headers = {"Server-Timing": server_timing(result)} if timed and result.stages else None
        return Response(result.body, result.status, headers, media_type="application/json")

    @app.exception_handler(BodyError)
    async def body_error(_: Request, error: BodyError) -> Response:
        return LastAnswer(error.status, error.detail)

    @app.exception_handler(Exception)
    async def internal_error(_: Request, __: Exception) -> Response:
        # The server's log has the traceback; the client gets the form of every other error.
        return JSONResponse({"detail": "Internal error; the server's log says where"}, 500)

    return app


def server_timing(answer: Answer) -> str:
    """Write an answer's stages as the header `Server-Timing` has them, in milliseconds."""
    stages = ((task, stage, seconds) for task, stages in answer.stages.items() for stage, seconds in stages.items())
    return ", ".join(f"{task}.{stage};dur={1000 * seconds:.1f}" for task, stage, seconds in stages)


async def unless_gone(answer: Awaitable[Answer], request: Request) -> Answer | None:
    """Wait for an answer, but no longer than the client does: then it is cancelled, and None."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await answering if answering.done() else None
    finally:
        for task in (answering, leaving):
            task.cancel()


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# For the names of hosts. Python's decoders take a time that grows with the square: 70 s for a field of 1 MB.
_SLOW_CHARSETS = {"punycode", "idna"}


class _InMemoryParser(MultiPartParser):
    spool_max_size = 2**63 - 1  # an upload is held in memory, never in a temporary file


async def read_request(request: Request, limits: BodyLimits, place: Place) -> PredictRequest:
    """Read the form of a `POST /predict`. Raises what FastAPI answers with 400 or 422, and BodyError."""
    form = await _read_form(request, limits, place)
    try:
        return await _from_form(form)
    finally:
        await form.close()


async def _from_form(form: FormData) -> PredictRequest:
    entries, image, text = form.get("entries"), form.get("image"), form.get("text")
    if not entries:
        raise RequestValidationError([_error("missing", "entries", "Field required")])
    for name, value in (("entries", entries), ("text", text)):
        if isinstance(value, UploadFile):
            raise RequestValidationError([_error("string_type", name, "Input should be a valid string")])
    return PredictRequest(
        entries=str(entries),
        image=await _read_image(image),
        text=text if isinstance(text, str) else None,
    )


async def _read_form(request: Request, limits: BodyLimits, place: Place) -> FormData:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form, body = FormData(), receive_body(request, limits, place)
    try:
        if content_type == "multipart/form-data":
            _check_charset(request)
            form = await _InMemoryParser(request.headers, body).parse()
        elif content_type == "application/x-www-form-urlencoded":
            form = await FormParser(request.headers, body).parse()
        for value in form.values():
            if isinstance(value, str):
                value.encode()  # a charset such as unicode_escape gives lone surrogates, which nothing later takes
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    except UnicodeError:
        await form.close()
        raise HTTPException(400, "The form is not in the charset it states") from None
    except ClientDisconnect:
        raise HTTPException(400, "The client went away") from None  # so nobody reads this
    return form


def _check_charset(request: Request) -> None:
    _, options = parse_options_header(request.headers["content-type"])
    with suppress(LookupError, ValueError):  # what is no charset is read as Latin-1
        if codecs.lookup(options.get(b"charset", b"utf-8").decode("latin-1")).name in _SLOW_CHARSETS:
            raise HTTPException(400, "The form is in a charset for the names of hosts; send UTF-8")


async def _read_image(value: UploadFile | str | None) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else await value.read()


def _error(kind: str, field: str, message: str) -> dict[str, Any]:
    return {"type": kind, "loc": ("body", field), "msg": message, "input": None}
