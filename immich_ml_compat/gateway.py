"""The dialect of the parent stack's gateway, which its patched Immich speaks: OCR without detection, answered as text.

    asked     {"ocr": {"recognition": {"modelName": "ocr"}}}
    answered  {"ocr": "all the text", "result": {"texts": [], "scores": [], "boxes": [{"x1", "y1", "x2", "y2"}]}}

Source: github.com/eric-gitta-moore/inference-gateway. Its x2 and y2 are a box's width and height, which was an
oversight: here they are the corner that the names say.
"""

from dataclasses import dataclass, replace
from typing import Any

import orjson

from .catalog import ModelType, Task
from .http_api import Answerer
from .messages import Answer, PredictRequest
from .mt_photos.answers import upright_boxes
from .mt_photos.requests import ocr_types


@dataclass(frozen=True)
class GatewayDialect:
    """Answers requests in that dialect, and passes all others on as they are."""

    answer: Answerer
    model: str
    """The OCR model that answers, whatever name is asked for: the gateway looked at none."""

    async def __call__(self, request: PredictRequest) -> Answer:
        """Answer a request."""
        entries = _in_dialect(request.entries)
        if entries is None:
            return await self.answer(request)
        entries[Task.OCR] = ocr_types(self.model)
        answer = await self.answer(
            replace(request, entries=orjson.dumps(entries, option=orjson.OPT_NON_STR_KEYS).decode())
        )
        return answer if answer.status != 200 else replace(answer, body=_translated(answer.body))


def _in_dialect(entries: str) -> dict[str, Any] | None:
    """Return a request's entries where they ask for OCR in that dialect."""
    try:
        asked: Any = orjson.loads(entries)
    except orjson.JSONDecodeError:
        return None
    ocr = asked.get(Task.OCR) if isinstance(asked, dict) else None
    if (
        not isinstance(ocr, dict)
        or set(ocr) != {ModelType.RECOGNITION}
        or not isinstance(ocr[ModelType.RECOGNITION], dict)
    ):
        return None
    return dict(asked)


def _translated(body: bytes) -> bytes:
    answered = orjson.loads(body)
    lines, size = answered[Task.OCR], (answered["imageWidth"], answered["imageHeight"])
    answered[Task.OCR] = " ".join(lines["text"])
    answered["result"] = {
        "texts": lines["text"],
        "scores": [f"{score:.2f}" for score in lines["textScore"]],
        "boxes": [dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for box in upright_boxes(lines["box"], size)],
    }
    return orjson.dumps(answered)
