"""What MT Photos asks for, said as Immich would: the `entries` of each kind of request."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from ..catalog import ModelType, Task
from ..messages import PredictRequest
from ..settings import PREFIX, Settings

DEFAULT_CLIP = "cn-clip_ViT-B-16"
"""What mt-photos-ai has."""

# RapidOCR's own thresholds, which mt-photos-ai leaves as they are. It scales the shorter side up to 736 pixels, and the
# longer one down to 2000: a shorter one of 1500 in a photo of 4:3.
_MIN_BOX_SCORE = _MIN_TEXT_SCORE = 0.5
_MIN_RESOLUTION, _MAX_RESOLUTION = 736, 1500


class Requests:
    """Makes the requests. A photo is upright in all of them: OpenCV, which mostly reads photos there, heeds EXIF."""

    def __init__(self, settings: Settings) -> None:
        clip = settings.mt_photos_clip_model or settings.clip_model or DEFAULT_CLIP
        self.face_model = settings.mt_photos_face_model
        self._clip_image = _entries(Task.CLIP, {ModelType.VISUAL: _model(clip)})
        self._clip_text = _entries(Task.CLIP, {ModelType.TEXTUAL: _model(clip)})
        self._ocr = _entries(Task.OCR, ocr_types(settings.mt_photos_ocr_model))
        self._faces = _entries(
            Task.FACES,
            {
                ModelType.DETECTION: _model(self.face_model, minScore=settings.mt_photos_face_min_score),
                ModelType.RECOGNITION: _model(self.face_model),
            },
        )

    def clip_image(self, image: bytes) -> PredictRequest:
        """Embed a photo."""
        return PredictRequest(self._clip_image, image, upright=True)

    def clip_text(self, text: str) -> PredictRequest:
        """Embed a query."""
        return PredictRequest(self._clip_text, text=text)

    def ocr(self, image: bytes) -> PredictRequest:
        """Read a photo's text."""
        return PredictRequest(self._ocr, image, upright=True)

    def faces(self, image: bytes) -> PredictRequest:
        """Find and embed a photo's faces."""
        return PredictRequest(self._faces, image, upright=True)

    def by_variable(self) -> Iterator[tuple[str, str]]:
        """Yield the variable that names the model of each kind of request, and its entries."""
        yield f"{PREFIX}MT_PHOTOS_CLIP_MODEL", self._clip_image
        yield f"{PREFIX}MT_PHOTOS_OCR_MODEL", self._ocr
        yield f"{PREFIX}MT_PHOTOS_FACE_MODEL", self._faces


def ocr_types(model: str) -> dict[str, Any]:
    """Return what asks an OCR model for all that RapidOCR would give."""
    return {
        ModelType.DETECTION: _model(
            model, minScore=_MIN_BOX_SCORE, minResolution=_MIN_RESOLUTION, maxResolution=_MAX_RESOLUTION
        ),
        ModelType.RECOGNITION: _model(model, minScore=_MIN_TEXT_SCORE),
    }


def _model(name: str, **options: float) -> dict[str, Any]:
    return {"modelName": name, "options": options}


def _entries(task: Task, types: Mapping[str, Any]) -> str:
    return orjson.dumps({task: types}, option=orjson.OPT_NON_STR_KEYS).decode()
