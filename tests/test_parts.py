"""A request in parts gives what it gives whole."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from immich_ml_compat.catalog import TYPES
from immich_ml_compat.errors import failure
from immich_ml_compat.messages import Answer, PredictRequest
from immich_ml_compat.names import ModelNames
from immich_ml_compat.parts import MODELS, Work, merge, split
from immich_ml_compat.plan import parse_plan
from immich_ml_compat.settings import Settings
from immich_ml_compat.store import ModelStore

from .model_folders import CLIP, FACES, OCR
from .oracles import packaged
from .server import Server

PAIR = ("detection", "recognition")
ENTRIES: dict[str, Any] = {
    "ocr": {kind: {"modelName": OCR} for kind in PAIR},
    "facial-recognition": {kind: {"modelName": FACES} for kind in PAIR},
    "clip": {"visual": {"modelName": CLIP}},
}
NAMES = ModelNames(ModelStore(Settings().cache_folder), {}, None)


def test_parts_answered_one_by_one_are_the_whole_answer_to_the_byte(server: Server) -> None:
    """Photo of people: floats of all three tasks, and the keys' order."""
    photo = packaged("insightface", "data/images/t1.jpg").read_bytes()
    parts = split(PredictRequest(json.dumps(ENTRIES), photo))
    assert list(parts) == [Work.CLIP_IMAGE, Work.FACES, Work.OCR]
    answers = [server.predict(part.entries, part.image) for part in parts.values()]
    whole = server.predict(ENTRIES, photo)
    assert merge(Answer(answer.status_code, answer.content) for answer in answers).body == whole.content


@given(tasks=st.permutations(list(ENTRIES)), number=st.integers(1, 3), empty=st.booleans())
def test_the_parts_ask_for_what_the_request_does(tasks: list[str], number: int, empty: bool) -> None:
    entries = {
        task: ENTRIES[task] if place < number else {} for place, task in enumerate(tasks) if empty or place < number
    }
    request = PredictRequest(json.dumps(entries), b"photo")
    parts, whole = split(request), parse_plan(request.entries, NAMES)
    plans = {work: parse_plan(part.entries, NAMES) for work, part in parts.items()}
    assert [plan.tasks for plan in plans.values()] == [(task,) for task in whole.tasks]
    assert [model for plan in plans.values() for model in plan.models] == list(whole.models)
    for work, part in parts.items():
        assert part.image == b"photo"
        task, types = MODELS[work]
        assert {(model.task, model.type) for model in plans[work].models} == {(task, kind) for kind in types}


def test_a_text_is_for_those_who_embed_texts() -> None:
    request = PredictRequest('{"clip": {"textual": {"modelName": "RN50__openai"}}}', None, "sea")
    assert split(request) == {Work.CLIP_TEXT: request}


def test_the_part_that_failed_is_the_answer() -> None:
    bad = failure(400, "no image")
    good = Answer(200, b'{"ocr":{},"imageHeight":1,"imageWidth":1}')
    assert merge([good, bad, failure(500, "later")]) is bad
    assert merge([good]) is good


def test_stages_of_all_parts_are_kept() -> None:
    answers = [
        Answer(200, b"{}", stages={task: {"decode": seconds}}) for task, seconds in (("clip", 1.0), ("ocr", 2.0))
    ]
    assert merge(answers).stages == {"clip": {"decode": 1.0}, "ocr": {"decode": 2.0}}


def test_every_task_has_its_works() -> None:
    assert {(task, kind) for task, types in MODELS.values() for kind in types} == {
        (task, kind) for task, types in TYPES.items() for kind in types
    }
