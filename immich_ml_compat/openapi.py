"""What the OpenAPI document says of `/predict` and `/ping`: the form, and every answer with its status and schema."""

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
