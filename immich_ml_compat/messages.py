"""What crosses the line between the HTTP face and inference: a raw request in, an answer out.

Nothing here imports numpy or a model, so the two sides can live in different processes.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """One request, as `POST /predict` has it: the `entries` JSON text, and an encoded image or a text."""

    entries: str
    image: bytes | None = None
    text: str | None = None
    upright: bool = False
    """Whether the image is to be turned as its EXIF says; Immich's previews are, and `/predict` never does."""


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A model to load, and let stay, or to unload; task and type by their values."""

    load: bool
    task: str
    type: str
    name: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer: the status and a JSON body in UTF-8."""

    status: int
    body: bytes
    out_of_memory: bool = False
    """Whether it failed for want of memory, and may not where nothing runs beside it."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """The seconds that each stage of each task took, where they were measured: {task: {stage: seconds}}."""
