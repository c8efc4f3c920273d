"""What the OpenAPI document says of MT Photos' endpoints."""

from typing import Any

from ..openapi import Responses, refusal


def _body(media_type: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "object", "required": [name], "properties": {name: schema}}}}
    return {"requestBody": {"required": True, "content": content}}


PHOTO_BODY = _body("multipart/form-data", "file", {"type": "string", "format": "binary"})
"""An encoded photo."""

TEXT_BODY = _body("application/json", "text", {"type": "string"})
"""A query."""

ANSWERS: Responses = {
    200: {
        "description": "What was asked for in `result`; where that failed, it is empty and `msg` says why",
        "content": {"application/json": {"schema": {"type": "object", "required": ["result"]}}},
    },
    400: refusal("The form cannot be read"),
    401: refusal("The key is wrong"),
    408: refusal("The body stopped coming"),
    413: refusal("The body is larger than the server takes"),
    422: {"description": "The key, the photo or the query is missing"},
    500: {"description": "A model is not there, does not load or fails; `msg` says which"},
    503: {"description": "No inference worker can be started; `msg` says why"},
}
"""Every answer."""
