"""The request plan: `entries` parsed once into the typed steps that answer it.

    entries (JSON) → Plan(clip=ClipImage(...), faces=Faces(...), ocr=Ocr(...))

Options belong to the step they came with; nothing here is shared between requests.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, NotRequired, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from .catalog import ModelType, Task
from .errors import InvalidInputError, InvalidRequestError
from .messages import PredictRequest
from .names import ModelNames, UnknownModelError
from .store import ModelKey

# ---------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class ClipImage:
    """Embed the image."""

    model: ModelKey


@dataclass(frozen=True, slots=True)
class ClipText:
    """Embed the text; `language` is the user's, as a tag such as `zh-CN`."""

    model: ModelKey
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Faces:
    """Find the faces that score at least `min_score`; embed them where a recogniser is named."""

    detector: ModelKey
    recognizer: ModelKey | None
    min_score: float = 0.7


@dataclass(frozen=True, slots=True)
class Ocr:
    """Find the lines of text, the image's shorter side scaled down to `max_resolution` pixels and up to
    `min_resolution`; read them where a recogniser is named."""

    detector: ModelKey
    recognizer: ModelKey | None
    min_box_score: float = 0.5
    max_resolution: int = 736
    min_text_score: float = 0.9
    orientation: bool | None = None
    """Whether to look for a page that is upside down or on its side; None leaves it to the settings."""

    min_resolution: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one request asks for, at most one step per task and input."""

    clip_image: ClipImage | None = None
    clip_text: ClipText | None = None
    faces: Faces | None = None
    ocr: Ocr | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is asked for, in the catalog's order."""
        steps = {
            Task.CLIP: self.clip_image or self.clip_text,
            Task.FACES: self.faces,
            Task.OCR: self.ocr,
        }
        return tuple(task for task, step in steps.items() if step is not None)

    @property
    def models(self) -> tuple[ModelKey, ...]:
        """The models of all steps."""
        keys = [step.model for step in (self.clip_image, self.clip_text) if step is not None]
        for step in (self.faces, self.ocr):
            if step is not None:
                keys += [step.detector, *([step.recognizer] if step.recognizer else [])]
        return tuple(keys)

    @property
    def needs_image(self) -> bool:
        """Whether any step works on the image."""
        return self.clip_image is not None or self.faces is not None or self.ocr is not None


# ---------------------------------------------------------------- what Immich sends


def _whole_number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Resolution = Annotated[int, BeforeValidator(_whole_number), Field(ge=1)]


class _Options(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _ClipTextOptions(_Options):
    language: str | None = None


class _FaceDetectionOptions(_Options):
    minScore: Score = 0.7  # noqa: N815  (Immich's name)


class _OcrDetectionOptions(_Options):
    minScore: Score = 0.5  # noqa: N815
    maxResolution: Resolution = 736  # noqa: N815
    minResolution: Resolution | None = None  # noqa: N815  (ours: Immich enlarges nothing)
    orientation: bool | None = None


class _OcrRecognitionOptions(_Options):
    minScore: Score = 0.9  # noqa: N815


_STRICT = ConfigDict(strict=True, extra="forbid")
OptionsT = TypeVar("OptionsT", bound=_Options)


class _Entry(BaseModel, Generic[OptionsT]):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    modelName: str  # noqa: N815
    options: OptionsT = Field(default_factory=dict, validate_default=True)


@with_config(_STRICT)
class _ClipEntries(TypedDict):
    visual: NotRequired[_Entry[_Options]]
    textual: NotRequired[_Entry[_ClipTextOptions]]


@with_config(_STRICT)
class _FaceEntries(TypedDict):
    detection: NotRequired[_Entry[_FaceDetectionOptions]]
    recognition: NotRequired[_Entry[_Options]]


@with_config(_STRICT)
class _OcrEntries(TypedDict):
    detection: NotRequired[_Entry[_OcrDetectionOptions]]
    recognition: NotRequired[_Entry[_OcrRecognitionOptions]]


_Entries = TypedDict(
    "_Entries",
    {
        "clip": NotRequired[_ClipEntries],
        "facial-recognition": NotRequired[_FaceEntries],
        "ocr": NotRequired[_OcrEntries],
    },
)
_ENTRIES = TypeAdapter(with_config(_STRICT)(_Entries))

INVALID = "Invalid request format."

_MOST_CHARACTERS = 64 * 1024
"""The longest `entries`, far more than Immich sends: to find all that is wrong in 1 MB takes half a second."""


def plan_request(request: PredictRequest, names: ModelNames) -> Plan:
    """Parse a request's entries and check that its image or text is what they take. Raises RequestError."""
    plan = parse_plan(request.entries, names)
    if request.image is None and not request.text:
        raise InvalidInputError("Either image or text must be provided")
    if request.image is not None and plan.clip_text is not None:
        raise InvalidInputError(f"Model '{plan.clip_text.model.name}' of type textual takes a text, not an image")
    if request.image is None and plan.needs_image:
        raise InvalidInputError("The request has a text, but a task in it takes an image")
    return plan


def parse_plan(entries: str, names: ModelNames) -> Plan:
    """Turn the text of `entries` into a plan.

    Raises InvalidRequestError (422) for anything malformed or unknown and InvalidInputError (400)
    for recognition without the detection it depends on.
    """
    if len(entries) > _MOST_CHARACTERS:
        raise InvalidRequestError(INVALID)
    try:
        asked = _ENTRIES.validate_python(orjson.loads(entries))
    except orjson.JSONDecodeError:
        raise InvalidRequestError(INVALID) from None
    except ValidationError as error:
        raise InvalidRequestError(_explain(error.errors()[0])) from None
    clip = asked.get("clip", _ClipEntries())
    faces = asked.get("facial-recognition", _FaceEntries())
    ocr = asked.get("ocr", _OcrEntries())
    if not (clip or faces or ocr):
        raise InvalidRequestError("No model task requested.")
    return Plan(
        clip_image=_clip_image(clip, names),
        clip_text=_clip_text(clip, names),
        faces=_faces(faces, names),
        ocr=_ocr(ocr, names),
    )


def _clip_image(entries: _ClipEntries, names: ModelNames) -> ClipImage | None:
    entry = entries.get("visual")
    return ClipImage(_key(entry, Task.CLIP, ModelType.VISUAL, names)) if entry else None


def _clip_text(entries: _ClipEntries, names: ModelNames) -> ClipText | None:
    entry = entries.get("textual")
    return ClipText(_key(entry, Task.CLIP, ModelType.TEXTUAL, names), entry.options.language) if entry else None


def _faces(entries: _FaceEntries, names: ModelNames) -> Faces | None:
    detection, recognition = entries.get("detection"), entries.get("recognition")
    if detection is None:
        _require_detection(recognition, Task.FACES)
        return None
    return Faces(
        detector=_key(detection, Task.FACES, ModelType.DETECTION, names),
        recognizer=_key(recognition, Task.FACES, ModelType.RECOGNITION, names) if recognition else None,
        min_score=detection.options.minScore,
    )


def _ocr(entries: _OcrEntries, names: ModelNames) -> Ocr | None:
    detection, recognition = entries.get("detection"), entries.get("recognition")
    if detection is None:
        _require_detection(recognition, Task.OCR)
        return None
    reading = recognition.options if recognition else _OcrRecognitionOptions()
    return Ocr(
        detector=_key(detection, Task.OCR, ModelType.DETECTION, names),
        recognizer=_key(recognition, Task.OCR, ModelType.RECOGNITION, names) if recognition else None,
        min_box_score=detection.options.minScore,
        max_resolution=detection.options.maxResolution,
        min_resolution=detection.options.minResolution or 0,
        min_text_score=reading.minScore,
        orientation=detection.options.orientation,
    )


def _require_detection(recognition: object, task: Task) -> None:
    if recognition is not None:
        raise InvalidInputError(f"Task {task} of type recognition depends on output of ('detection', '{task}')")


def _key(entry: _Entry[Any], task: Task, kind: ModelType, names: ModelNames) -> ModelKey:
    try:
        return names.key(task, kind, entry.modelName)
    except UnknownModelError as error:
        raise InvalidRequestError(f"{INVALID} {error}") from None


def _explain(error: Any) -> str:
    """Name an unknown task, type or a bad option; anything else is the stock server's own sentence."""
    location = [str(part)[:100] for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        kind = "task" if len(location) == 1 else "type"
        return f"{INVALID} Unknown {kind} {'/'.join(location)!r}."
    if len(location) > 3:
        return f"{INVALID} Option {'/'.join(location)!r}: {error['msg']}."
    return INVALID
