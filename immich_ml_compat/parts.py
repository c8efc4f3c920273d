"""One request as a part for each kind of work in it, and the parts' answers as one: for workers that do one kind each.

The front has found nothing wrong with the request before.
"""

from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from typing import Any

import orjson

from .catalog import ModelType, Task
from .messages import Answer, PredictRequest


class Work(StrEnum):
    """A kind of work."""

    CLIP_IMAGE = "clip-image"
    CLIP_TEXT = "clip-text"
    FACES = "faces"
    OCR = "ocr"


MODELS = {
    Work.CLIP_IMAGE: (Task.CLIP, (ModelType.VISUAL,)),
    Work.CLIP_TEXT: (Task.CLIP, (ModelType.TEXTUAL,)),
    Work.FACES: (Task.FACES, (ModelType.DETECTION, ModelType.RECOGNITION)),
    Work.OCR: (Task.OCR, (ModelType.DETECTION, ModelType.RECOGNITION)),
}
"""The task and the graphs of each kind of work."""

_OF_AN_IMAGE = {Task.CLIP: Work.CLIP_IMAGE, Task.FACES: Work.FACES, Task.OCR: Work.OCR}
_KEYS = (*(task.value for task in Task), "imageHeight", "imageWidth")


def split(request: PredictRequest) -> dict[Work, PredictRequest]:
    """Return the parts of a request, in the order of their results."""
    if request.image is None:
        return {Work.CLIP_TEXT: request}
    entries: dict[str, Any] = orjson.loads(request.entries)
    asked = [task for task in Task if entries.get(task)]
    if len(asked) == 1:
        return {_OF_AN_IMAGE[asked[0]]: request}
    return {
        _OF_AN_IMAGE[task]: replace(request, entries=orjson.dumps({task.value: entries[task]}).decode())
        for task in asked
    }


def merge(answers: Iterable[Answer]) -> Answer:
    """Return the answer to a request from those to its parts; where one of them failed, that one."""
    answers = list(answers)
    for answer in answers:
        if answer.status != 200 or len(answers) == 1:
            return answer
    results: dict[str, Any] = {}
    stages: dict[str, dict[str, float]] = {}
    for answer in answers:
        results |= orjson.loads(answer.body)
        stages |= answer.stages
    # A float32 in its shortest form is also the shortest of the double that it reads as: the text stays the same.
    body = orjson.dumps({key: results[key] for key in _KEYS if key in results})
    return Answer(200, body, stages=stages)
