"""What the OpenAPI document says: the form of `/predict`, and every answer with its status and schema."""

from typing import Any

Responses = dict[int | str, dict[str, Any]]


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


PREDICT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["entries"],
                    "properties": {
                        "entries": {
                            "type": "string",
                            "description": "JSON: {task: {type: {modelName, options?}}}",
                            "examples": ['{"clip":{"visual":{"modelName":"ViT-B-32__openai"}}}'],
                        },
                        "image": {"type": "string", "format": "binary", "description": "An encoded photo"},
                        "text": {"type": "string", "description": "A search query; an image wins over it"},
                    },
                }
            }
        },
    }
}
"""The form of a `POST /predict`."""

_NUMBER, _STRING = {"type": "number"}, {"type": "string"}
_SIDE = {"type": "integer", "minimum": 1}
_EMBEDDING = _STRING | {"description": "float32 numbers as a JSON array", "pattern": r"^\[[-+.,0-9e]*\]$"}

_BOXES = {"boxes": _list_of(_list_of(_NUMBER)), "scores": _list_of(_NUMBER)}
_FACE = {
    "boundingBox": _object({"x1": _NUMBER, "y1": _NUMBER, "x2": _NUMBER, "y2": _NUMBER}),
    "embedding": _EMBEDDING,
    "score": _NUMBER,
}
_FACES = {
    "description": "The faces; where only a detector was named, what it found",
    "oneOf": [
        _list_of(_object(_FACE)),
        _object({**_BOXES, "landmarks": _list_of(_list_of(_list_of(_NUMBER)))}),
    ],
}
_LINES = {
    "box": _list_of(_NUMBER),
    "text": _list_of(_STRING),
    "boxScore": _list_of(_NUMBER),
    "textScore": _list_of(_NUMBER),
}
_OCR = {
    "description": "The lines of text; where only a detector was named, what it found",
    "oneOf": [_object(_LINES), _object({**_BOXES, "boxes": _list_of(_list_of(_list_of(_NUMBER)))})],
}

_RESULT = _object(
    {}, {"clip": _EMBEDDING, "facial-recognition": _FACES, "ocr": _OCR, "imageHeight": _SIDE, "imageWidth": _SIDE}
)
_DETAIL = _object({"detail": _STRING})
_DETAILS = _object({"detail": {"anyOf": [_STRING, _list_of({"type": "object"})]}})


def refusal(description: str) -> dict[str, Any]:
    """Return what the document says of an error."""
    return _json(description, _DETAIL)


PREDICT_ANSWERS: Responses = {
    200: _json("What each task found, and the size of the image", _RESULT),
    400: _json("The form, the image or the text cannot be used", _DETAIL),
    408: _json("The body stopped coming", _DETAIL),
    413: _json("The body is larger than the server takes", _DETAIL),
    422: _json("The entries are missing, malformed or name something unknown", _DETAILS),
    499: {"description": "The client went away before the answer: nobody reads this"},
    500: _json("A model is not there, does not load or fails", _DETAIL),
    503: _json("No inference worker can be started", _DETAIL),
}
"""Every answer to a `POST /predict`."""

PING_ANSWERS: Responses = {
    200: {"content": {"text/plain": {"schema": {"type": "string", "const": "pong"}}}},
    503: {
        "description": "Nothing can be answered at present; says why",
        "content": {"text/plain": {"schema": _STRING}},
    },
}
"""Every answer to a `GET /ping`."""

METRICS_ANSWERS: Responses = {
    200: {"description": "Prometheus's text format", "content": {"text/plain": {"schema": _STRING}}},
}
"""Every answer to a `GET /metrics`."""

_COUNT, _FLAG = {"type": "integer", "minimum": 0}, {"type": "boolean"}
_TIME = {"type": "string", "format": "date-time"}
_NULL = {"type": "null"}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _NULL]}


_MODEL = {
    "task": {"enum": ["clip", "facial-recognition", "ocr"]},
    "type": {"enum": ["visual", "textual", "detection", "recognition"]},
    "name": _STRING,
    "state": {
        "enum": ["loaded", "on disk", "bundled", "to be downloaded"],
        "description": "What is not in memory is loaded at the first request, from the disk or from this package",
    },
    "preloaded": _FLAG,
    "last_run": _maybe(_TIME),
    "last_failure": _maybe(_object({"at": _TIME, "detail": _STRING})),
}
_HEALTH = _object(
    {
        "ready": _FLAG,
        "trouble": _maybe(_STRING),
        "version": _STRING,
        "uptime_s": _NUMBER,
        "engine": _object({"engine": _STRING, "device": _STRING, "precision": _STRING, "reason": _STRING}),
        "substitutions": _list_of(_STRING),
        "self_test": _maybe(_object({"at": _TIME, "passed": _FLAG, "model": _STRING})),
        "models": _list_of(_object(_MODEL)),
        "workers": _object({"running": _COUNT, "starts": _COUNT, "restarts": _COUNT}),
        "queue": _object({"photos": _COUNT, "searches": _COUNT, "bytes": _COUNT, "in_hand": _COUNT}),
    }
)

HEALTH_ANSWERS: Responses = {
    200: _json("How the server is: requests can be answered", _HEALTH),
    503: _json("How the server is: no inference worker can be started", _HEALTH),
}
"""Every answer to a `GET /health`."""
