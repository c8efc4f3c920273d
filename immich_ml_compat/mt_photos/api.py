"""MT Photos' endpoints: each reads its request, has it answered as `POST /predict` would be, and says it its way."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from .. import __version__
from ..body import BodyLimits, read_small
from ..forms import form_of, invalid, missing, read_file
from ..http_api import Answerer, Health, add_ping, answer_errors, unless_gone
from ..messages import Answer, PredictRequest
from ..room import BodyRoom, Place
from .answers import DETECTOR, clip_answer, error_answer, faces_answer, ocr_answer
from .key import ApiKey
from .openapi import ANSWERS, PHOTO_BODY, TEXT_BODY
from .requests import Requests

PATHS = ("/ocr", "/clip/img", "/clip/txt", "/represent")
"""The endpoints that run models."""

_HELP = "https://mtmt.tech/docs/advanced/ocr_api"
_FACE_HELP = "https://mtmt.tech/docs/advanced/facial_api"

_MOST_BYTES = 64 * 1024
"""The longest query, far beyond what a model reads."""

_WELCOME = (
    '<!doctype html><html lang="zh"><meta charset="utf-8"><title>MT Photos AI Server</title>'
    "<p>MT Photos智能识别服务：运行中 · MT Photos AI server: running<p>推理设备 · device: {device}"
    f'<p><a href="{_HELP}">{_HELP}</a></html>'
)

_Body = dict[str, Any]


class ClipText(BaseModel):
    """A query to embed."""

    text: str


@dataclass(frozen=True)
class MtPhotos:
    """What the endpoints are built around."""

    answer: Answerer
    """Gets the answer to a request, as for `POST /predict`."""

    free: Callable[[], Awaitable[bool]]
    """Gives back what memory is not in use; False where that cannot be ordered."""

    requests: Requests
    key: str | None
    """What requests carry as `api-key`; None: only this machine may ask."""

    device: str
    """What models run on."""

    limits: BodyLimits
    room: BodyRoom

    async def photo(
        self, request: Request, wanted: Callable[[bytes], PredictRequest], say: Callable[[_Body], _Body]
    ) -> Response:
        """Answer a request that has a photo."""
        with self.room.place() as place:
            image = await self._read_photo(request, place)
            return await self._answer(request, wanted(image), say)

    async def text(self, request: Request) -> Response:
        """Answer a request that has a query."""
        with self.room.place() as place:
            try:
                query = ClipText.model_validate_json(await read_small(request, self.limits, place, _MOST_BYTES))
            except ValidationError as error:
                first = error.errors()[0]
                raise invalid(first["type"], "body", *map(str, first["loc"]), message=first["msg"]) from None
            except ClientDisconnect:
                raise HTTPException(400, "The client went away") from None  # so nobody reads this
            return await self._answer(request, self.requests.clip_text(query.text), clip_answer)

    async def _read_photo(self, request: Request, place: Place) -> bytes:
        async with form_of(request, self.limits, place) as form:
            image = await read_file(form.get("file"))
        if image is None:
            raise missing("body", "file")
        return image

    async def _answer(self, request: Request, wanted: PredictRequest, say: Callable[[_Body], _Body]) -> Response:
        result = await unless_gone(self.answer(wanted), request)
        if result is None:
            return Response(status_code=499)  # nobody reads it
        return _json(*_said(result, say))


def create_mt_photos(parts: MtPhotos) -> APIRouter:
    """Build the endpoints."""
    key = ApiKey(parts.key)
    router = APIRouter(tags=["MT Photos"])
    guarded = APIRouter(dependencies=[Depends(key)], tags=["MT Photos"], responses=ANSWERS)

    @guarded.post("/check", summary="Say that the key is right")
    async def check() -> _Body:
        return {"result": "pass", "title": "mt-photos-ai服务", "help": _HELP, "device": parts.device}

    @guarded.post("/ocr", summary="Read a photo's text", openapi_extra=PHOTO_BODY)
    async def ocr(request: Request) -> Response:
        return await parts.photo(request, parts.requests.ocr, ocr_answer)

    @guarded.post("/clip/img", summary="Embed a photo", openapi_extra=PHOTO_BODY)
    async def clip_image(request: Request) -> Response:
        return await parts.photo(request, parts.requests.clip_image, clip_answer)

    @guarded.post("/clip/txt", summary="Embed a query", openapi_extra=TEXT_BODY)
    async def clip_text(request: Request) -> Response:
        return await parts.text(request)

    @guarded.post("/represent", summary="Find and embed a photo's faces", openapi_extra=PHOTO_BODY)
    async def represent(request: Request) -> Response:
        model = parts.requests.face_model
        return await parts.photo(request, parts.requests.faces, lambda body: faces_answer(body, model))

    @guarded.post("/restart", summary="Do nothing: memory is given back without it")
    async def restart() -> _Body:
        return {"result": "unsupported"}

    @guarded.post("/restart_v2", summary="Unload the models that are not in use")
    async def restart_v2() -> _Body:
        return {"result": "pass" if await parts.free() else "unsupported"}

    # MT Photos asks this one without a key.
    @router.get("/face/check", summary="Say which face model answers", dependencies=[Depends(key.check_place)])
    async def face_check() -> _Body:
        model = parts.requests.face_model
        title = "face recognition api for mt-photos"
        return {"title": title, "link": _FACE_HELP, "detector_backend": DETECTOR, "recognition_model": model}

    router.include_router(guarded)
    return router


def create_mt_photos_app(router: APIRouter, health: Health, device: str) -> FastAPI:
    """Build the application of a port that MT Photos has to itself."""
    app = FastAPI(title="MT Photos AI Server", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    async def root() -> Response:
        return HTMLResponse(_WELCOME.format(device=device))

    add_ping(app, health)
    answer_errors(app)
    app.include_router(router)
    return app


def _said(answer: Answer, say: Callable[[_Body], _Body]) -> tuple[_Body, int]:
    """Return an answer in MT Photos' shape, and its status: there a photo's own faults come with 200."""
    if answer.status == 200:
        return say(orjson.loads(answer.body)), 200
    return error_answer(answer), 200 if answer.status < 500 else answer.status


def _json(body: _Body, status: int) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
