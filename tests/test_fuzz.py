"""Bad input by the hundred, the same every time; `make soak` tries more (benchmarks/fuzz)."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil
import pytest
import schemathesis
from schemathesis.core.failures import FailureGroup

from benchmarks.fuzz import http, images
from benchmarks.fuzz.layout import layout
from benchmarks.fuzz.models import write_image_tower, write_models
from benchmarks.fuzz.mutations import Picture, picture, pictures, with_right_sums
from benchmarks.fuzz.seeds import FORMATS, seeds
from immich_ml_compat import service
from immich_ml_compat.errors import failure
from immich_ml_compat.images import Photo
from immich_ml_compat.messages import Answer, PredictRequest
from immich_ml_compat.settings import Settings

# ---------------------------------------------------------------- the instruments


@pytest.mark.parametrize("form", FORMATS)
def test_the_seeds_are_good_pictures_that_come_apart_where_they_say(form: str) -> None:
    for kind, data in seeds(form):
        width, height = Photo(data).size
        assert min(width, height) > 10, kind
        parts = layout(form, data)
        assert parts.lengths, kind
        assert 0 < min(parts.cuts) <= max(parts.cuts) < len(data), kind
        stated = sorted(number.read(data) for number in parts.sizes[-1 if form == "JPEG" else 0])
        near = {(side + change) for side in (width, height) for change in (-1, 0)}
        assert "lossless" in kind or set(stated) <= near, kind
        for number in (*parts.lengths, *parts.sizes[0]):
            assert number.write(data, number.read(data)) == data


def test_mutations_are_all_different_and_the_same_again() -> None:
    some = list(pictures(0, 600))
    assert [other.data for other in pictures(0, 600)] == [one.data for one in some]
    assert len({one.data for one in some}) > 580
    assert len({other.data for other in pictures(1, 600)} - {one.data for one in some}) > 550
    good = {data for form in FORMATS for _, data in seeds(form)}
    assert sum(one.data in good for one in some) < 30
    for data in (data for _, data in seeds("PNG")):
        assert with_right_sums(data) == data
        assert with_right_sums(data[:30] + b"\1\2\3" + data[33:]) == data


def test_what_must_not_be_answered_is_told() -> None:
    good = Answer(200, b'{"clip":"[1.0]","imageHeight":1,"imageWidth":2}')
    assert images.fault_of(good) is None
    assert images.fault_of(failure(400, "The image is empty")) is None
    bad = [failure(500, "a model"), failure(400, ""), failure(400, "It cannot be decoded: "), Answer(400, b"{}")]
    for answer in (*bad, Answer(302, b'{"detail":"elsewhere"}'), Answer(200, b"{}")):
        assert images.fault_of(answer)
    assert http.fault_of_response(httpx.Response(422, json={"detail": "x"})) is None
    for response in (
        *(httpx.Response(500, json={"detail": "x"}), httpx.Response(400, text="x"), httpx.Response(400, json={})),
        httpx.Response(200, json={}),
    ):
        assert http.fault_of_response(response)


# ---------------------------------------------------------------- images through a worker


@pytest.fixture
def small_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the workers that this process starts use tiny models."""
    write_models(tmp_path)
    write_image_tower(tmp_path)
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(tmp_path))


@pytest.mark.usefixtures("small_models")
def test_mutated_images_in_a_worker_with_a_memory_limit() -> None:
    outcome = asyncio.run(images.run(pictures(0, 900)))
    assert outcome.failures == []
    assert outcome.statuses.total() == 900
    for form in FORMATS:
        assert outcome.statuses[form, 200] > 20
        assert outcome.statuses[form, 400] > 50
    assert 100 < outcome.peak_mb < outcome.limit_mb


@pytest.mark.usefixtures("small_models")
def test_the_death_of_a_worker_is_a_failure() -> None:
    def deadly() -> Iterator[Picture]:
        yield picture(0, 0)
        for child in psutil.Process().children():  # the shared server is one too
            if "immich_ml_compat.worker" in child.cmdline():
                child.kill()
        yield picture(0, 1)

    (failure,) = asyncio.run(images.run(deadly())).failures
    assert "SIGKILL" in failure
    assert "seed 0, number 1" in failure


def too_large_for_pillow(*_: object, **__: object) -> None:
    raise MemoryError


def too_large_for_opencv(*_: object, **__: object) -> None:
    cv2.copyMakeBorder(np.zeros((1, 1, 3), np.uint8), 0, 2**31 - 2, 0, 2**31 - 2, cv2.BORDER_REPLICATE)


def broken(*_: object, **__: object) -> None:
    cv2.resize(np.zeros((0, 0), np.uint8), (1, 1))


@pytest.mark.parametrize("full", [too_large_for_pillow, too_large_for_opencv])
def test_memory_that_runs_out_after_decoding_is_told(
    full: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the images above: the whole photo's pixels as an array, beside the photo."""
    monkeypatch.setattr(service, "read_text", full)
    entries = '{"ocr":{"detection":{"modelName":"PP-OCRv6_small"}}}'
    request = PredictRequest(entries, image=seeds("PNG")[0][1])
    answerer = service.Service(Settings(cache_folder=tmp_path))
    assert answerer.answer(request) == failure(400, "The image takes more memory than there is", out_of_memory=True)
    monkeypatch.setattr(service, "read_text", broken)
    with pytest.raises(cv2.error):  # a mistake of ours stays one
        answerer.answer(request)


# ---------------------------------------------------------------- requests to a server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with tiny models; a traceback in its log is a failure."""
    with http.fuzzed_server(tmp_path_factory.mktemp("fuzzed")) as url:
        yield url


def test_entries_and_options(url: str) -> None:
    statuses = http.try_entries(url, 100)
    assert min(statuses[200], statuses[400], statuses[422]) > 3


def test_framing(url: str) -> None:
    statuses = http.try_framing(url, 100)
    assert min(statuses[200], statuses[400], statuses[422]) > 3


def test_mutated_images_over_http(url: str) -> None:
    statuses = http.try_images(url, 60, seed=1)
    assert set(statuses) == {200, 400}


def test_what_the_openapi_document_declares_is_what_comes(url: str) -> None:
    statuses = http.try_document(url, 30)
    assert {200, 400, 422} <= set(statuses) <= {200, 400, 404, 405, 415, 422}


@pytest.mark.parametrize(
    ("where", "instead"),
    [
        (("responses",), {"200": {"description": "anything"}}),
        (("responses", "422", "content"), {"text/html": {"schema": {}}}),
        (("responses", "422", "content", "application/json", "schema"), {"type": "array"}),
    ],
    ids=["status", "content type", "schema"],
)
def test_a_document_that_says_something_else_is_told(url: str, where: tuple[str, ...], instead: object) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    *path, last = ("paths", "/predict", "post", *where)
    place = document
    for name in path:
        place = place[name]
    place[last] = instead
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    case = schema["/predict"]["POST"].Case(body={"entries": "nonsense"}, media_type="multipart/form-data")
    with pytest.raises(FailureGroup):
        case.call_and_validate(checks=http.CHECKS)
