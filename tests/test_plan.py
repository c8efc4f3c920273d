"""`entries` to a plan: every row of the contract's tables, and whatever else a client may send."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from immich_ml_compat.catalog import NAMES, ModelType, Task, clean_name
from immich_ml_compat.errors import InvalidInputError, InvalidRequestError, RequestError
from immich_ml_compat.names import ModelNames
from immich_ml_compat.plan import ClipImage, ClipText, Faces, Ocr, Plan, parse_plan
from immich_ml_compat.store import ModelKey, ModelStore

CLIP, FACES, OCR = "ViT-B-32__openai", "buffalo_l", "PP-OCRv5_mobile"
TYPES = {"clip": ("visual", "textual"), "facial-recognition": ("detection", "recognition")}
TYPES["ocr"] = TYPES["facial-recognition"]
NAME_OF = {"clip": CLIP, "facial-recognition": FACES, "ocr": OCR}
WHERE = [(task, kind) for task, kinds in TYPES.items() for kind in kinds]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> ModelNames:
    """The stock names over an empty cache whose task folders are there."""
    folder = tmp_path_factory.mktemp("cache")
    for task in Task:
        (folder / task).mkdir()
    return ModelNames(ModelStore(folder), {})


def key(task: Task, kind: ModelType, name: str | None = None) -> ModelKey:
    return ModelKey(task, name or NAME_OF[task], kind)


VISUAL = key(Task.CLIP, ModelType.VISUAL)
TEXTUAL = key(Task.CLIP, ModelType.TEXTUAL)
FACE_DETECTOR = key(Task.FACES, ModelType.DETECTION)
FACE_RECOGNIZER = key(Task.FACES, ModelType.RECOGNITION)
OCR_DETECTOR = key(Task.OCR, ModelType.DETECTION)
OCR_RECOGNIZER = key(Task.OCR, ModelType.RECOGNITION)


def entries(task: str, **options: Any) -> dict[str, Any]:
    """A request for both types of a task (for the image tower of CLIP), with options by type."""
    kinds = ("visual",) if task == "clip" and "textual" not in options else TYPES[task]
    return {task: {kind: {"modelName": NAME_OF[task], "options": options.get(kind, {})} for kind in kinds}}


def with_option(task: str, kind: str, option: str, value: str) -> str:
    """A request with one option, whose value is JSON text."""
    return json.dumps(entries(task, **{kind: {option: "VALUE"}})).replace('"VALUE"', value)


def refused(text: Any, names: ModelNames) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_plan(text if isinstance(text, str) else json.dumps(text), names)
    assert caught.value.status == 422
    return caught.value


# ---------------------------------------------------------------- what Immich sends


def test_what_immich_sends(names: ModelNames) -> None:
    def plan(text: str) -> Plan:
        return parse_plan(text, names)

    assert plan('{"clip":{"visual":{"modelName":"ViT-B-32__openai"}}}') == Plan(clip_image=ClipImage(VISUAL))
    textual = '{"clip":{"textual":{"modelName":"ViT-B-32__openai","options":{"language":"zh-CN"}}}}'
    assert plan(textual) == Plan(clip_text=ClipText(TEXTUAL, "zh-CN"))
    assert plan(textual.replace('"language":"zh-CN"', "")) == Plan(clip_text=ClipText(TEXTUAL, None))
    faces = (
        '{"facial-recognition":{"detection":{"modelName":"buffalo_l","options":{"minScore":0.6}},'
        '"recognition":{"modelName":"buffalo_l"}}}'
    )
    assert plan(faces) == Plan(faces=Faces(FACE_DETECTOR, FACE_RECOGNIZER, 0.6))
    ocr = (
        '{"ocr":{"detection":{"modelName":"PP-OCRv5_mobile","options":{"minScore":0.4,"maxResolution":960}},'
        '"recognition":{"modelName":"PP-OCRv5_mobile","options":{"minScore":0.8}}}}'
    )
    assert plan(ocr) == Plan(ocr=Ocr(OCR_DETECTOR, OCR_RECOGNIZER, 0.4, 960, 0.8))


def test_defaults(names: ModelNames) -> None:
    asked = {task: {kind: {"modelName": NAME_OF[task]} for kind in kinds} for task, kinds in TYPES.items()}
    plan = parse_plan(json.dumps(asked), names)
    assert plan.clip_text == ClipText(TEXTUAL, None)
    assert plan.faces == Faces(FACE_DETECTOR, FACE_RECOGNIZER, 0.7)
    assert plan.ocr == Ocr(OCR_DETECTOR, OCR_RECOGNIZER, 0.5, 736, 0.9, None)
    assert parse_plan(json.dumps({task: entries(task)[task] for task in TYPES}), names) == Plan(
        plan.clip_image, None, plan.faces, plan.ocr
    )


def test_several_tasks_and_detection_alone(names: ModelNames) -> None:
    plan = parse_plan(json.dumps(entries("ocr") | entries("clip") | {"facial-recognition": {}}), names)
    assert plan.ocr is not None
    assert plan.clip_image is not None
    assert (plan.faces, plan.clip_text) == (None, None)
    for task in ("facial-recognition", "ocr"):
        alone = parse_plan(json.dumps({task: {"detection": {"modelName": NAME_OF[task]}}}), names)
        step = alone.faces or alone.ocr
        assert step is not None
        assert step.recognizer is None


def test_the_order_of_types_and_tasks_does_not_matter(names: ModelNames) -> None:
    asked = entries("ocr", detection={"minScore": 0.3}) | entries("facial-recognition") | entries("clip", textual={})
    turned = {task: dict(reversed(kinds.items())) for task, kinds in reversed(asked.items())}
    assert list(turned["ocr"]) == ["recognition", "detection"]
    assert parse_plan(json.dumps(turned), names) == parse_plan(json.dumps(asked), names)


def test_options_stay_with_their_request(names: ModelNames) -> None:
    usual = parse_plan(json.dumps(entries("ocr") | entries("facial-recognition")), names)
    options = {"minScore": 0.11, "maxResolution": 99, "orientation": True, "language": "de"}
    for task, kind in WHERE:
        if (task, kind) != ("clip", "visual"):
            parse_plan(json.dumps(entries(task, **{kind: options})), names)
    assert parse_plan(json.dumps(entries("ocr") | entries("facial-recognition")), names) == usual
    # nor do two types of one request share theirs
    both = parse_plan(json.dumps(entries("ocr", recognition={"minScore": 0.2}) | entries("facial-recognition")), names)
    assert both.ocr == Ocr(OCR_DETECTOR, OCR_RECOGNIZER, 0.5, 736, 0.2)
    assert both.faces == usual.faces


@pytest.mark.parametrize(("task", "kind"), WHERE)
def test_unknown_keys_are_ignored(names: ModelNames, task: str, kind: str) -> None:
    asked = entries(task, **{kind: {"zzz": [1], "minscore": "x", "min_score": -1}})
    asked[task][kind]["extra"] = {"deep": None}
    assert parse_plan(json.dumps(asked), names) == parse_plan(json.dumps(entries(task, **{kind: {}})), names)


def test_whether_a_plan_needs_an_image(names: ModelNames) -> None:
    text = parse_plan(json.dumps({"clip": {"textual": {"modelName": CLIP}}}), names)
    assert not text.needs_image
    for task in TYPES:
        assert parse_plan(json.dumps(entries(task)), names).needs_image


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("immich-app/ViT-B-32::openai", CLIP),
        ("ViT-B-32::openai", CLIP),
        ("a/b/ViT-B-32__openai", CLIP),
        ("ViT-B-32:_openai", CLIP),
        ("ViT-B-32\\_openai", CLIP),
        ("ViT-B-32\\\\openai", CLIP),
        ("Vi.T-B-3.2__op.enai", CLIP),
        ("../../clip/ViT-B-32__openai", CLIP),
    ],
)
def test_names_are_cleaned(names: ModelNames, written: str, name: str) -> None:
    assert clean_name(written) == name
    plan = parse_plan(json.dumps({"clip": {"visual": {"modelName": written}}}), names)
    assert plan == Plan(clip_image=ClipImage(key(Task.CLIP, ModelType.VISUAL, name)))


@pytest.mark.parametrize("task", list(Task))
def test_every_stock_name_is_accepted_for_its_task_only(names: ModelNames, task: Task) -> None:
    for owner, known in NAMES.items():
        for name in known:
            asked = {task: {TYPES[task][0]: {"modelName": name}}}
            if owner == task:
                parse_plan(json.dumps(asked), names)
            else:
                detail = refused(asked, names).detail
                assert detail.startswith("Invalid request format.")
                assert name in detail


@pytest.mark.parametrize(
    "name", ["", "/", "nope", "VIT-B-32__OPENAI", " ViT-B-32__openai", ".", "..", "a/", "\0", "\n"]
)
@pytest.mark.parametrize(("task", "kind"), WHERE)
def test_unknown_models(names: ModelNames, task: str, kind: str, name: str) -> None:
    asked = entries(task, **{kind: {}})
    asked[task][kind]["modelName"] = name
    assert refused(asked, names).detail == f"Invalid request format. Unknown model for {task}: {name!r}."


def test_unknown_tasks_and_types(names: ModelNames) -> None:
    assert "Unknown task 'search'" in refused({"search": {"textual": {"modelName": CLIP}}}, names).detail
    assert "Unknown task 'CLIP'" in refused(entries("ocr") | {"CLIP": {}}, names).detail
    for task in TYPES:
        detail = refused(entries(task) | {task: {"nonsense": {"modelName": NAME_OF[task]}}}, names).detail
        assert f"Unknown type '{task}/nonsense'" in detail
    assert len(refused({"x" * 100_000: {}}, names).detail) < 1000
    assert len(refused({"clip": {"x" * 100_000: {}}}, names).detail) < 1000
    assert len(refused({"clip": {"visual": {"modelName": "x" * 100_000}}}, names).detail) < 1000


def test_long_entries_are_not_looked_at(names: ModelNames) -> None:
    text = json.dumps(entries("clip"))
    assert parse_plan(text + " " * (64 * 1024 - len(text)), names).clip_image
    with pytest.raises(InvalidRequestError, match="Invalid request format"):
        parse_plan(text + " " * 64 * 1024, names)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "}", "nope", "{'clip': {}}", '{"clip":{}', "{} {}", "\ufeff{}", "\0", "\ud800", '"\\ud800"'),
        *("null", "[]", "5", "true", '"clip"', "[{}]", "NaN", '{"clip":NaN}', "[" * 100_000, '{"a":' * 100_000),
        *('{"clip":null}', '{"clip":[]}', '{"clip":"visual"}', '{"clip":5}', '{"clip":true}', '{"ocr":[{}]}'),
        *('{"clip":{"visual":null}}', '{"clip":{"visual":[]}}', '{"clip":{"visual":"ViT-B-32__openai"}}'),
        *('{"clip":{"visual":{}}}', '{"clip":{"visual":{"modelName":null}}}', '{"clip":{"visual":{"modelName":5}}}'),
        *('{"clip":{"visual":{"modelName":["a"]}}}', '{"clip":{"visual":{"modelname":"ViT-B-32__openai"}}}'),
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_malformed(names: ModelNames, text: str) -> None:
    assert refused(text, names).detail == "Invalid request format."


@pytest.mark.parametrize("options", [None, [], "minScore", 5, True])
@pytest.mark.parametrize(("task", "kind"), WHERE)
def test_options_of_the_wrong_shape(names: ModelNames, task: str, kind: str, options: object) -> None:
    asked = entries(task, **{kind: {}})
    asked[task][kind]["options"] = options
    assert refused(asked, names).detail == "Invalid request format."


@pytest.mark.parametrize("asked", [{}, {"clip": {}}, {"ocr": {}, "clip": {}, "facial-recognition": {}}])
def test_nothing_asked_for(names: ModelNames, asked: dict[str, Any]) -> None:
    assert refused(asked, names).detail == "No model task requested."


@pytest.mark.parametrize("task", ["facial-recognition", "ocr"])
def test_recognition_without_detection(names: ModelNames, task: str) -> None:
    asked = {task: {"recognition": {"modelName": NAME_OF[task]}}} | entries("clip")
    with pytest.raises(InvalidInputError, match="depends on output of") as caught:
        parse_plan(json.dumps(asked), names)
    assert caught.value.status == 400


# ---------------------------------------------------------------- options

SCORES = [("facial-recognition", "detection"), ("ocr", "detection"), ("ocr", "recognition")]
NOT_A_SCORE = ["-1", "-0.001", "1.001", "7", "1e999", "-1e999", "NaN", "null", '"0.5"', '"a"', "[]", "{}", "true"]
NOT_A_SIDE = ["0", "-1", "-1e30", "736.5", "0.5", "1e999", "NaN", "null", '"736"', "[]", "{}", "true", "9" * 400]


@pytest.mark.parametrize("value", NOT_A_SCORE)
@pytest.mark.parametrize(("task", "kind"), SCORES)
def test_scores_that_are_none(names: ModelNames, task: str, kind: str, value: str) -> None:
    detail = refused(with_option(task, kind, "minScore", value), names).detail
    assert detail.startswith("Invalid request format.")
    if orjson_takes(value):
        assert f"'{task}/{kind}/options/minScore'" in detail


@pytest.mark.parametrize("value", NOT_A_SIDE)
def test_resolutions_that_are_none(names: ModelNames, value: str) -> None:
    detail = refused(with_option("ocr", "detection", "maxResolution", value), names).detail
    assert detail.startswith("Invalid request format.")
    if orjson_takes(value):
        assert "'ocr/detection/options/maxResolution'" in detail


def orjson_takes(value: str) -> bool:
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return True


@pytest.mark.parametrize("value", ["0", "1", "0.0", "1.0", "-0.0", "0.1", "5e-324", "0.30000000000000004"])
@pytest.mark.parametrize(("task", "kind"), SCORES)
def test_scores(names: ModelNames, task: str, kind: str, value: str) -> None:
    plan = parse_plan(with_option(task, kind, "minScore", value), names)
    if plan.faces is not None:
        assert plan.faces.min_score == float(value)
    else:
        assert plan.ocr is not None
        found = plan.ocr.min_box_score if kind == "detection" else plan.ocr.min_text_score
        assert found == float(value)
        assert (plan.ocr.min_text_score if kind == "detection" else plan.ocr.min_box_score) in (0.9, 0.5)


@pytest.mark.parametrize(("value", "side"), [("1", 1), ("736.0", 736), ("100000", 100_000), ("1e30", int(1e30))])
def test_resolutions(names: ModelNames, value: str, side: int) -> None:
    plan = parse_plan(with_option("ocr", "detection", "maxResolution", value), names)
    assert plan.ocr is not None
    assert plan.ocr.max_resolution == side
    assert isinstance(plan.ocr.max_resolution, int)


@pytest.mark.parametrize(("value", "orientation"), [("true", True), ("false", False), ("null", None)])
def test_orientation(names: ModelNames, value: str, *, orientation: bool | None) -> None:
    plan = parse_plan(with_option("ocr", "detection", "orientation", value), names)
    assert plan.ocr is not None
    assert plan.ocr.orientation is orientation


def test_orientation_and_language_of_the_wrong_kind(names: ModelNames) -> None:
    for value in ('"yes"', "1", "[]"):
        assert "orientation" in refused(with_option("ocr", "detection", "orientation", value), names).detail
    for value in ("5", "[]", "{}", "true"):
        assert "language" in refused(with_option("clip", "textual", "language", value), names).detail
    assert parse_plan(with_option("clip", "textual", "language", "null"), names).clip_text == ClipText(TEXTUAL, None)


# ---------------------------------------------------------------- anything

JSON_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
WORDS = st.sampled_from([*TYPES, "visual", "textual", "detection", "recognition", "modelName", "options", "minScore"])
JSON = st.recursive(
    JSON_LEAF | st.sampled_from([CLIP, FACES, OCR]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def parse_or_refuse(text: str, names: ModelNames) -> None:
    refusal = None
    try:
        parse_plan(text, names)
    except RequestError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status in (400, 422)
        assert orjson.dumps(refusal.detail)  # it can be answered


@given(value=JSON)
@settings(max_examples=300, deadline=None)
def test_any_json(names: ModelNames, value: object) -> None:
    parse_or_refuse(json.dumps(value), names)


@given(name=st.text(), options=JSON, place=st.sampled_from(WHERE))
@settings(max_examples=200, deadline=None)
def test_any_name_and_options(names: ModelNames, name: str, options: object, place: tuple[str, str]) -> None:
    task, kind = place
    asked = entries(task, **{kind: {}})
    parse_or_refuse(json.dumps({task: asked[task] | {kind: {"modelName": name}}}), names)
    parse_or_refuse(json.dumps({task: asked[task] | {kind: {"modelName": NAME_OF[task], "options": options}}}), names)


@given(text=st.text(st.characters() | st.sampled_from('{}[]":,')))
@settings(max_examples=200, deadline=None)
def test_any_text(names: ModelNames, text: str) -> None:
    parse_or_refuse(text, names)


@given(
    scores=st.tuples(*[st.floats(0, 1)] * 3),
    side=st.integers(1, 10_000),
    language=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    orientation=st.none() | st.booleans(),
    chosen=st.tuples(*(st.sampled_from(sorted(NAMES[task])) for task in Task)),
)
@settings(max_examples=200, deadline=None)
def test_valid_plans_round_trip(
    names: ModelNames,
    scores: tuple[float, ...],
    side: int,
    language: str | None,
    orientation: bool | None,
    chosen: tuple[str, ...],
) -> None:
    def entry(name: str, **options: Any) -> dict[str, Any]:
        return {"modelName": name, "options": options}

    clip, faces, ocr = chosen
    reading = entry(ocr, minScore=scores[2])
    finding = entry(ocr, minScore=scores[1], maxResolution=side, orientation=orientation)
    asked = {
        "ocr": {"recognition": reading, "detection": finding},
        "clip": {"visual": entry(clip), "textual": entry(clip, language=language)},
        "facial-recognition": {"detection": entry(faces, minScore=scores[0]), "recognition": entry(faces)},
    }
    assert parse_plan(orjson.dumps(asked).decode(), names) == Plan(
        ClipImage(key(Task.CLIP, ModelType.VISUAL, clip)),
        ClipText(key(Task.CLIP, ModelType.TEXTUAL, clip), language),
        Faces(key(Task.FACES, ModelType.DETECTION, faces), key(Task.FACES, ModelType.RECOGNITION, faces), scores[0]),
        Ocr(
            key(Task.OCR, ModelType.DETECTION, ocr),
            key(Task.OCR, ModelType.RECOGNITION, ocr),
            *(scores[1], side, scores[2], orientation),
        ),
    )


def test_a_plan_looks_at_no_file_for_a_stock_name(tmp_path: Path) -> None:
    absent = ModelNames(ModelStore(tmp_path / "absent"), {})
    assert parse_plan(json.dumps(entries("clip")), absent) == Plan(clip_image=ClipImage(VISUAL))
