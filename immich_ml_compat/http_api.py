"""The HTTP face: the endpoints Immich calls, and nothing about models."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import FormData, UploadFile
from starlette.types import Lifespan

from . import __version__
from .body import BodyError, BodyLimits, LastAnswer
from .forms import form_of, invalid, missing, read_file
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

    add_ping(app, health)

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

    answer_errors(app)
    return app


def add_ping(app: FastAPI, health: Health) -> None:
    """Have an application say that it is up."""

    @app.get("/ping", summary="Say that the server is up", response_class=PlainTextResponse, responses=PING_ANSWERS)
    async def ping() -> Response:
        trouble = health()
        return PlainTextResponse("pong") if trouble is None else PlainTextResponse(trouble, 503)


def answer_errors(app: FastAPI) -> None:
    """Have an application answer the errors that are this project's own."""

    @app.exception_handler(BodyError)
    async def body_error(_: Request, error: BodyError) -> Response:
        return LastAnswer(error.status, error.detail)

    @app.exception_handler(Exception)
    async def internal_error(_: Request, __: Exception) -> Response:
        # The server's log has the traceback; the client gets the form of every other error.
        return JSONResponse({"detail": "Internal error; the server's log says where"}, 500)


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


async def read_request(request: Request, limits: BodyLimits, place: Place) -> PredictRequest:
    """Read the form of a `POST /predict`. Raises what FastAPI answers with 400 or 422, and BodyError."""
    async with form_of(request, limits, place) as form:
        return await _from_form(form)


async def _from_form(form: FormData) -> PredictRequest:
    entries, image, text = form.get("entries"), form.get("image"), form.get("text")
    if not entries:
        raise missing("body", "entries")
    for name, value in (("entries", entries), ("text", text)):
        if isinstance(value, UploadFile):
            raise invalid("string_type", "body", name, message="Input should be a valid string")
    return PredictRequest(
        entries=str(entries),
        image=await read_file(image),
        text=text if isinstance(text, str) else None,
    )
