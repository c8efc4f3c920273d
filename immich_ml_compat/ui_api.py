"""The page at `/ui`: its files, the server's state as JSON, and the models to load and unload.

Mounted only where the settings say so, and below the access token as everything else. No other site may use it: what
changes something takes JSON alone. A browser sends that to another site only where it is allowed, and here it never is.
"""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.requests import ClientDisconnect

from .body import BodyLimits, read_small
from .catalog import NAMES, TYPES, ModelType, Task
from .messages import Answer, ModelChange
from .openapi import Responses, refusal
from .room import BodyRoom
from .status import ServerStatus
from .store import ModelStore

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
"""What the page's files are sent with: nothing from elsewhere, no code in the markup, no frame around it."""

_MOST_BYTES = 16 * 1024
"""The largest order, by far: it names one model."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ChangeOrder(BaseModel):
    """A model to load, and let stay, or to unload."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["load", "unload"]
    task: Task
    type: ModelType
    name: Name


class KnownModel(BaseModel):
    """A model that can be loaded, and whether it is on disk, whole."""

    name: str
    here: bool


class KnownModels(BaseModel):
    """The models of a task, and the types of graph that each has."""

    types: tuple[ModelType, ...]
    names: list[KnownModel]


def create_ui(
    status: Callable[[], ServerStatus],
    change: Callable[[ModelChange], Awaitable[Answer]],
    store: ModelStore,
    limits: BodyLimits = BodyLimits(),  # noqa: B008 - frozen
) -> APIRouter:
    """Build the page around what tells of the server and what changes its models."""
    router = APIRouter(prefix="/ui")
    contents = {path.name: path.read_bytes() for path in files(__package__).joinpath("ui").iterdir()}

    @router.get("", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html", contents["index.html"])

    @router.get("/", include_in_schema=False)
    async def page_elsewhere() -> Response:
        return RedirectResponse("../ui")  # the page's links are relative to where it is

    @router.get("/status", summary="Say what the server is doing")
    async def state() -> ServerStatus:
        return status()

    @router.get("/models", summary="List the models that can be loaded, by task")
    async def models() -> dict[Task, KnownModels]:
        return await run_in_threadpool(known_models, store)

    @router.post("/models", summary="Load or unload a model", openapi_extra=_CHANGE_BODY, responses=_CHANGE_ANSWERS)
    async def change_model(request: Request) -> Response:
        order = await read_order(request, limits)
        answer = await change(ModelChange(order.action == "load", order.task, order.type, order.name))
        return Response(answer.body, answer.status, media_type="application/json")

    @router.get("/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return _file(name, contents[name])

    return router


async def read_order(request: Request, limits: BodyLimits) -> ChangeOrder:
    """Read the body of a `POST /ui/models`. Raises what FastAPI answers with 415 or 422, and BodyError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "The body must be application/json")
    try:
        with BodyRoom(1).place() as place:  # an order waits behind no photo
            body = await read_small(request, limits, place, _MOST_BYTES)
        order = ChangeOrder.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, _explain(error)) from None
    except ClientDisconnect:
        raise HTTPException(400, "The client went away") from None  # so nobody reads this
    if order.type not in TYPES[order.task]:
        raise HTTPException(422, f"A model for {order.task} has no {order.type} graph")
    return order


def known_models(store: ModelStore) -> dict[Task, KnownModels]:
    """List the models with a name, those on disk first."""
    held = set(store.models())
    known: dict[Task, KnownModels] = {}
    for task, types in TYPES.items():
        names = NAMES[task] | {name for other, name in held if other == task}
        models = [KnownModel(name=name, here=(task, name) in held and not store.missing(task, name)) for name in names]
        known[task] = KnownModels(types=types, names=sorted(models, key=lambda model: (not model.here, model.name)))
    return known


def _file(name: str, content: bytes) -> Response:
    return Response(content, headers=HEADERS | {"Content-Type": _MEDIA_TYPES[name[name.rindex(".") :]]})


def _explain(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    place = "/".join(str(part)[:100] for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _schema_of_orders() -> dict[str, Any]:
    """Return the schema of a ChangeOrder without references, which would lead nowhere in the OpenAPI document."""
    schema = ChangeOrder.model_json_schema()
    definitions = schema.pop("$defs")
    for name, part in schema["properties"].items():
        if "$ref" in part:
            schema["properties"][name] = definitions[part["$ref"].rpartition("/")[2]]
    return schema


_CHANGE_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema_of_orders()}}}}
_CHANGE_ANSWERS: Responses = {
    200: {"description": "It is done", "content": {"application/json": {"schema": {"type": "object"}}}},
    408: refusal("The body stopped coming"),
    409: refusal("Requests use the model"),
    413: refusal("The body is larger than the server takes"),
    415: refusal("The body is no JSON by its type"),
    422: refusal("The order is malformed or names something unknown"),
    500: refusal("The model is not there or does not load"),
    503: refusal("No inference worker can be started"),
}
