"""The parent stack's patched Immich is answered as its gateway did."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from immich_ml_compat.gateway import GatewayDialect
from immich_ml_compat.messages import Answer, PredictRequest

from .clip_models import write_clip_model
from .model_folders import CLIP
from .oracles import oracle
from .pages import CHINESE, ENGLISH, column, encoded, page
from .server import Server, running_server
from .test_mt_photos import bgr

ASKED = {"ocr": {"recognition": {"modelName": "ocr"}}}
IMMICHS = {"ocr": {"detection": {"modelName": "PP-OCRv6_small"}, "recognition": {"modelName": "PP-OCRv6_small"}}}
LINES = [*CHINESE[:3], ENGLISH[0]]
PAGE = page((760, 380), column(LINES))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    write_clip_model(folder / "cache", CLIP)
    with running_server(folder / "cache", folder, {"MACHINE_LEARNING_LEGACY_OCR": "true"}) as server:
        yield server


def test_it_is_answered_in_its_dialect(server: Server) -> None:
    answer = server.predict(ASKED, encoded(PAGE))
    assert answer.status_code == 200
    body = answer.json()
    read = oracle("rapidocr").RapidOCR()(bgr(PAGE))
    assert body["ocr"] == " ".join(read.txts) == " ".join(LINES)
    result = body["result"]
    assert set(result) == {"texts", "scores", "boxes"}
    assert result["texts"] == list(read.txts)
    for score, theirs in zip(result["scores"], read.scores, strict=True):
        assert isinstance(score, str)
        assert abs(float(score) - theirs) < 0.03
    for box, quad in zip(result["boxes"], read.boxes, strict=True):
        assert list(box) == ["x1", "y1", "x2", "y2"]
        corners = [*quad.min(axis=0), *quad.max(axis=0)]
        assert max(abs(one - other) for one, other in zip(box.values(), corners, strict=True)) <= 4


def test_a_photo_without_text(server: Server) -> None:
    body = server.predict(ASKED, encoded(Image.new("RGB", (300, 200), "grey"))).json()
    assert (body["ocr"], body["result"]) == ("", {"texts": [], "scores": [], "boxes": []})


def test_immich_itself_is_answered_as_ever(server: Server) -> None:
    body = server.predict(IMMICHS, encoded(PAGE)).json()
    assert list(body["ocr"]) == ["box", "text", "boxScore", "textScore"]
    assert "result" not in body


def test_other_tasks_of_the_request_stay(server: Server) -> None:
    both = server.predict(ASKED | {"clip": {"visual": {"modelName": CLIP}}}, encoded(PAGE)).json()
    alone = server.predict({"clip": {"visual": {"modelName": CLIP}}}, encoded(PAGE)).json()
    assert json.loads(both["clip"]) == pytest.approx(json.loads(alone["clip"]), abs=1e-3)
    assert both["ocr"] == " ".join(LINES)


def test_errors_are_those_of_every_request(server: Server) -> None:
    answer = server.predict(ASKED, b"no picture")
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("The image ")
    assert server.predict(ASKED).json() == {"detail": "Either image or text must be provided"}


def test_without_the_setting_it_is_a_mistake(cache: Path, tmp_path: Path) -> None:
    with running_server(cache, tmp_path) as stock:
        answer = stock.predict(ASKED, b"not looked at")
    assert answer.status_code == 400
    assert "depends on output of" in answer.json()["detail"]


# ---------------------------------------------------------------- whatever is asked


def passed_on(entries: str) -> tuple[list[str], Answer]:
    """What reaches the server behind the dialect, and what is said of its answer."""
    reached: list[str] = []

    async def answer(request: PredictRequest) -> Answer:
        reached.append(request.entries)
        lines = {"box": [0.0, 0.0, 0.5, 0.0, 0.5, 0.5, 0.0, 0.5], "text": ["a"], "boxScore": [1], "textScore": [0.987]}
        return Answer(200, json.dumps({"ocr": lines, "imageHeight": 20, "imageWidth": 10}).encode())

    said = asyncio.run(GatewayDialect(answer, "model")(PredictRequest(entries, b"")))
    return reached, said


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.one_of(st.text(), JSON.map(json.dumps), st.dictionaries(st.just("ocr"), JSON).map(json.dumps)))
def test_whatever_is_not_in_it_goes_on_as_it_is(entries: str) -> None:
    reached, said = passed_on(entries)
    assert reached == [entries]
    assert b"result" not in said.body


@pytest.mark.parametrize("depth", [100, 300, 900, 2000])
def test_nesting_is_no_error_of_the_servers(server: Server, depth: int) -> None:
    answer = server.predict(f'{json.dumps(ASKED)[:-1]}, "clip": {"[" * depth}{"]" * depth}}}', encoded(PAGE))
    assert answer.status_code < 500, answer.text


@given(st.dictionaries(st.text(), JSON, max_size=3), st.dictionaries(st.sampled_from(["clip", "x"]), JSON))
def test_the_names_it_comes_with_do_not_matter(model: dict[str, Any], others: dict[str, Any]) -> None:
    reached, said = passed_on(json.dumps(others | {"ocr": {"recognition": model}}))
    asked = json.loads(reached[0])
    assert {kind: entry["modelName"] for kind, entry in asked["ocr"].items()} == {
        "detection": "model",
        "recognition": "model",
    }
    assert {name: value for name, value in asked.items() if name != "ocr"} == others
    body = json.loads(said.body)
    assert body["ocr"] == "a"
    assert body["result"] == {"texts": ["a"], "scores": ["0.99"], "boxes": [{"x1": 0, "y1": 0, "x2": 5, "y2": 10}]}
