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
        entries = self._in_immichs_words(request.entries)
        if entries is None:
            return await self.answer(request)
        answer = await self.answer(replace(request, entries=entries))
        return answer if answer.status != 200 else replace(answer, body=_translated(answer.body))

    def _in_immichs_words(self, entries: str) -> str | None:
        """Return a request's entries as today's Immich has them; None where they are not in that dialect."""
        try:
            asked: Any = orjson.loads(entries)
            if not _is_dialect(asked):
                return None
            return orjson.dumps(asked | {Task.OCR: ocr_types(self.model)}, option=orjson.OPT_NON_STR_KEYS).decode()
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # what is nested too deep is read, but not written
            return None


def _is_dialect(asked: Any) -> bool:
    """Tell whether entries ask for OCR in that dialect: by a recogniser alone."""
    ocr = asked.get(Task.OCR) if isinstance(asked, dict) else None
    return isinstance(ocr, dict) and list(map(type, ocr.values())) == [dict] and ModelType.RECOGNITION in ocr


def _translated(body: bytes) -> bytes:
    answered = orjson.loads(body)
    lines, size = answered[Task.OCR], (answered["imageWidth"], answered["imageHeight"])
    answered[Task.OCR] = " ".join(lines["text"])
    answered["result"] = {
        "texts": lines["text"],
        "scores": [f"{score:.2f}" for score in lines["textScore"]],
        "boxes": [
            {name: round(pixels, 2) for name, pixels in zip(("x1", "y1", "x2", "y2"), box, strict=True)}
            for box in upright_boxes(lines["box"], size)
        ],
    }
    return orjson.dumps(answered)
