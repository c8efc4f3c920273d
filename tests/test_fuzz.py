"""Bad input by the hundred, the same every time; `make soak` tries more (benchmarks/fuzz)."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok

from benchmarks.fuzz import http, images
from benchmarks.fuzz.layout import layout
from benchmarks.fuzz.models import write_image_tower, write_models
from benchmarks.fuzz.mutations import picture, pictures, with_right_sums
from benchmarks.fuzz.seeds import FORMATS, seeds
from immich_ml_compat.errors import failure
from immich_ml_compat.images import Photo
from immich_ml_compat.messages import Answer

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
    assert len({data.data for data in pictures(1, 600)} - {one.data for one in some}) > 580
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


def test_mutated_images_in_a_worker_with_a_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path)
    write_image_tower(tmp_path)
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(tmp_path))
    outcome = asyncio.run(images.run(pictures(0, 900)))
    assert outcome.failures == []
    assert outcome.statuses.total() == 900
    for form in FORMATS:
        assert outcome.statuses[form, 200] > 15
        assert outcome.statuses[form, 400] > 50
    assert 100 < outcome.peak_mb < outcome.limit_mb


def test_the_death_of_a_worker_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path)
    write_image_tower(tmp_path)
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", str(tmp_path))
    monkeypatch.setattr(images, "ROOM_MB", -100_000 / 1024)  # less than it has
    outcome = asyncio.run(images.run(picture(0, number) for number in range(12)))
    assert outcome.failures
