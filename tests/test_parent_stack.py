"""The parent stack's variables are understood where ours are not set."""

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from immich_ml_compat.catalog import CHINESE_CLIP_DIMENSIONS
from immich_ml_compat.environment import report_environment
from immich_ml_compat.parent_stack import readings
from immich_ml_compat.settings import ConfigurationError, load_settings

from .server import SETTING

P = "MACHINE_LEARNING_"
SIZES = ["RN50", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if SETTING.match(name):
            monkeypatch.delenv(name)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """What the start tells of the environment."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        report_environment()
    return [(record.levelno, record.message) for record in caplog.records]


@pytest.mark.parametrize(
    ("name", "value", "field", "meaning"),
    [
        *(("CLIP_MODEL", size, "clip_model", f"cn-clip_{size}") for size in SIZES),
        *(("CLIP_MODEL", f"cn-clip_{size}", "clip_model", f"cn-clip_{size}") for size in SIZES),
        ("CLIP_DOWNLOAD_ROOT", "/no/such/folder", "clip_download_root", Path("/no/such/folder")),
        ("DEVICE", "cuda", "device", "cuda"),
        ("DEVICE", "cpu", "device", "cpu"),
        ("RECOGNITION_MODEL", "antelopev2", "mt_photos_face_model", "antelopev2"),
        ("DETECTION_THRESH", "0.5", "mt_photos_face_min_score", 0.5),
        ("HTTP_PORT", "8066", "mt_photos_port", 8066),
        ("SERVER_RESTART_TIME", "60", "model_ttl", 60),
        ("PORT", "8080", "port", 8080),
        ("ONNX_PROVIDERS", "CUDAExecutionProvider", "device", "cuda"),
        ("ONNX_PROVIDERS", "CUDAExecutionProvider,CPUExecutionProvider", "device", "auto"),
        ("ONNX_PROVIDERS", "CPUExecutionProvider", "device", "cpu"),
    ],
)
def test_each_is_ours_by_another_name(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
    field: str,
    meaning: object,
) -> None:
    ours, usual = "IMMICH_PORT" if field == "port" else f"{P}{field.upper()}", load_settings()
    if field.startswith("mt_photos"):
        monkeypatch.setenv(f"{P}MT_PHOTOS", "true")
        usual = load_settings()
    for spelling in (name, name.lower()):
        monkeypatch.setenv(spelling, value)
        assert getattr(load_settings(), field) == meaning
        assert told(caplog) == [(logging.INFO, f"{name}={value} is understood as {ours}={meaning}")]
        monkeypatch.delenv(spelling)
        monkeypatch.setenv(ours, str(meaning))
        translated = load_settings()
        monkeypatch.delenv(ours)
        monkeypatch.setenv(spelling, value)
        assert load_settings() == translated
        monkeypatch.setenv(spelling, "")
        assert load_settings() == usual, "empty is unset"
        assert told(caplog) == []
        monkeypatch.delenv(spelling)


def test_what_is_ours_wins_and_the_other_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for theirs, ours in (("CLIP_MODEL", "ViT-B-32__openai"), ("CLIP_DOWNLOAD_ROOT", "/ours"), ("DEVICE", "auto")):
        monkeypatch.setenv(theirs, "of no meaning")
        monkeypatch.setenv(f"{P}{theirs}", ours)
    settings = load_settings()
    found = (settings.clip_model, settings.clip_download_root, settings.device)
    assert found == ("ViT-B-32__openai", Path("/ours"), "auto")
    assert told(caplog) == [
        (logging.WARNING, f"{name}=of no meaning is ignored: {P}{name} is set")
        for name in ("CLIP_MODEL", "CLIP_DOWNLOAD_ROOT", "DEVICE")
    ]
    for name in ("CLIP_MODEL", "CLIP_DOWNLOAD_ROOT", "DEVICE"):
        monkeypatch.setenv(f"{P}{name}", "")
    monkeypatch.setenv("CLIP_MODEL", "RN50")
    assert load_settings().clip_model == "cn-clip_RN50", "ours is empty, and that is unset"


@pytest.mark.parametrize("value", ["ViT-B-32", "vit-b-16", "ViT-B-16__openai", "cn-clip_", "cn-clip_cn-clip_RN50"])
def test_a_model_that_the_parent_stack_has_not(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CLIP_MODEL", value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"CLIP_MODEL={value}: takes one of {', '.join(SIZES)};")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["auto", "CUDA", "cuda:0", "/dev/sda", "sensor-7"])
def test_another_value_of_a_name_that_anything_may_set_is_told_and_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    monkeypatch.setenv("DEVICE", value)
    assert load_settings().device == "auto"
    assert told(caplog) == [(logging.WARNING, f"DEVICE={value} is ignored: it takes cuda or cpu")]


def test_of_two_that_say_the_same_the_first_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("ONNX_PROVIDERS", "CUDAExecutionProvider,CPUExecutionProvider")
    assert load_settings().device == "cpu"
    assert told(caplog) == [
        (logging.INFO, f"DEVICE=cpu is understood as {P}DEVICE=cpu"),
        (logging.WARNING, "ONNX_PROVIDERS=CUDAExecutionProvider,CPUExecutionProvider is ignored: DEVICE is set"),
    ]
    monkeypatch.setenv("DEVICE", "sensor-7")
    assert load_settings().device == "auto", "what was ignored does not count"


def test_a_key_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("API_AUTH_KEY", "hunter2")
    monkeypatch.setenv("MT_PHOTOS_API_KEY", "hunter3")
    assert load_settings().mt_photos_api_key == SecretStr("hunter2")
    assert [line for _, line in told(caplog)] == [
        f"API_AUTH_KEY is understood as {P}MT_PHOTOS_API_KEY",
        "MT_PHOTOS_API_KEY is ignored: API_AUTH_KEY is set",
        f"MT Photos itself is answered with {P}MT_PHOTOS=true",
    ]
    monkeypatch.setenv("API_AUTH_KEY", "hunter 2")
    with pytest.raises(ConfigurationError, match=r"^API_AUTH_KEY: takes 1 to 256 printable") as caught:
        load_settings()
    assert "hunter" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "tcp://10.0.0.7:80"), ("PORT", "0"), ("HTTP_PORT", "65536"), ("HTTP_PORT", "٣"), ("ONNX_PROVIDERS", "x")],
)
def test_other_values_of_common_names_are_ignored(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    usual = load_settings()
    monkeypatch.setenv(name, value)
    assert load_settings() == usual
    (reading,) = readings({name: value})
    assert str(reading).startswith(f"{name}={value} is ignored: it takes ")


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5"])
def test_a_restart_takes_seconds(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SERVER_RESTART_TIME", value)
    with pytest.raises(ConfigurationError, match=r"^SERVER_RESTART_TIME=.*: takes seconds, 1 or more$"):
        load_settings()


def test_blanks_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_MODEL", " RN50 ")
    monkeypatch.setenv("CLIP_DOWNLOAD_ROOT", "  ")
    settings = load_settings()
    assert (settings.clip_model, settings.clip_download_root) == ("cn-clip_RN50", None)


def test_an_error_names_the_variable_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_DOWNLOAD_ROOT", __file__)
    monkeypatch.setenv("IMMICH_PORT", "nope")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    root, port = str(caught.value).splitlines()
    assert root == f"CLIP_DOWNLOAD_ROOT={__file__}: is a file, takes a folder"
    assert port.startswith("IMMICH_PORT=nope: ")


@given(
    theirs=st.sampled_from(["", *SIZES]),
    ours=st.none() | st.sampled_from(["", *CHINESE_CLIP_DIMENSIONS, "house"]),
)
def test_who_wins(theirs: str, ours: str | None) -> None:
    variables = {"CLIP_MODEL": theirs} | ({f"{P}CLIP_MODEL": ours} if ours is not None else {})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        assert load_settings().clip_model == (ours or (f"cn-clip_{theirs}" if theirs else None))
    assert [bool(reading.overruled_by) for reading in readings(variables)] == ([bool(ours)] if theirs else [])
