"""The environment variables, and the address to listen on."""

import logging
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from immich_ml_compat.serving import listen
from immich_ml_compat.settings import ConfigurationError, MaxBatchSize, Preload, Settings, load_settings

from .server import SETTING, running_server

P = "MACHINE_LEARNING_"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if SETTING.match(name):
            monkeypatch.delenv(name)


def value_of(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
# field, variable, default, (text, value), a bad text
VARIABLES: list[tuple[str, str, object, tuple[str, object], str | None]] = [
    ("cache_folder", f"{P}CACHE_FOLDER", Path.home() / ".cache/immich_ml", ("/cache", Path("/cache")), __file__),
    ("model_aliases", f"{P}MODEL_ALIASES", {}, ('{"a":"b","c":"d"}', {"a": "b", "c": "d"}), "nope"),
    ("clip_model", f"{P}CLIP_MODEL", None, ("cn-clip_RN50", "cn-clip_RN50"), None),
    ("clip_download_root", f"{P}CLIP_DOWNLOAD_ROOT", None, ("/checkpoints", Path("/checkpoints")), __file__),
    ("model_source", f"{P}MODEL_SOURCE", "huggingface", ("modelscope", "modelscope"), "github"),
    ("engine", f"{P}ENGINE", "auto", ("openvino", "openvino"), "tensorrt"),
    ("device", f"{P}DEVICE", "auto", ("openvino-gpu", "openvino-gpu"), "toaster"),
    ("precision", f"{P}PRECISION", "auto", ("bf16", "bf16"), "fp8"),
    ("device_ids", f"{P}DEVICE_IDS", (0,), ("1, 0", (1, 0)), "-1"),
    ("workers", f"{P}WORKERS", 1, ("2", 2), "0"),
    ("worker_timeout", f"{P}WORKER_TIMEOUT", 300, ("60", 60), "-1"),
    ("worker_heartbeat_timeout_s", f"{P}WORKER_HEARTBEAT_TIMEOUT_S", 30, ("5", 5), "1"),
    ("model_ttl", f"{P}MODEL_TTL", 300, ("-1", -1), "a day"),
    ("text_model_ttl", f"{P}TEXT_MODEL_TTL", None, ("3600", 3600), "long"),
    ("model_ttl_poll_s", f"{P}MODEL_TTL_POLL_S", 10, ("0.5", 0.5), "0"),
    ("memory_budget_mb", f"{P}MEMORY_BUDGET_MB", None, ("2000", 2000), "0"),
    ("preload.clip.textual", f"{P}PRELOAD__CLIP__TEXTUAL", "", ("a,b", "a,b"), None),
    ("preload.clip.visual", f"{P}PRELOAD__CLIP__VISUAL", "", ("a", "a"), None),
    ("preload.facial_recognition.detection", f"{P}PRELOAD__FACIAL_RECOGNITION__DETECTION", "", ("a", "a"), None),
    ("preload.facial_recognition.recognition", f"{P}PRELOAD__FACIAL_RECOGNITION__RECOGNITION", "", ("a", "a"), None),
    ("preload.ocr.detection", f"{P}PRELOAD__OCR__DETECTION", "", ("a", "a"), None),
    ("preload.ocr.recognition", f"{P}PRELOAD__OCR__RECOGNITION", "", ("a", "a"), None),
    ("model_intra_op_threads", f"{P}MODEL_INTRA_OP_THREADS", 0, ("3", 3), "-1"),
    ("model_inter_op_threads", f"{P}MODEL_INTER_OP_THREADS", 0, ("4", 4), "1.5"),
    ("model_arena", f"{P}MODEL_ARENA", True, ("false", False), "maybe"),
    ("request_threads", f"{P}REQUEST_THREADS", None, ("7", 7), "many"),
    ("max_batch_size.ocr", f"{P}MAX_BATCH_SIZE__OCR", None, ("5", 5), "0"),
    ("max_batch_size.facial_recognition", f"{P}MAX_BATCH_SIZE__FACIAL_RECOGNITION", None, ("6", 6), "x"),
    ("ocr_orientation", f"{P}OCR_ORIENTATION", True, ("false", False), "2"),
    ("http_keepalive_timeout_s", f"{P}HTTP_KEEPALIVE_TIMEOUT_S", 2, ("30", 30), "soon"),
    ("header_timeout_s", f"{P}HEADER_TIMEOUT_S", 30, ("5", 5), "0"),
    ("max_body_mb", f"{P}MAX_BODY_MB", 64, ("100", 100), "0"),
    ("queue_mb", f"{P}QUEUE_MB", 512, ("64", 64), "0"),
    ("shutdown_timeout", f"{P}SHUTDOWN_TIMEOUT", 8, ("0", 0), "-1"),
    ("max_image_pixels", f"{P}MAX_IMAGE_PIXELS", 178_956_970, ("1000000", 1_000_000), "178956971"),
    ("access_token", f"{P}ACCESS_TOKEN", None, ("Az09._~+=-", SecretStr("Az09._~+=-")), None),
    ("tls_cert", f"{P}TLS_CERT", None, ("/tls/cert.pem", Path("/tls/cert.pem")), None),
    ("tls_key", f"{P}TLS_KEY", None, ("/tls/key.pem", Path("/tls/key.pem")), None),
    ("ui", f"{P}UI", False, ("true", True), "perhaps"),
    ("mt_photos", f"{P}MT_PHOTOS", False, ("true", True), "perhaps"),
    ("mt_photos_port", f"{P}MT_PHOTOS_PORT", 8060, ("8066", 8066), "65536"),
    ("mt_photos_api_key", f"{P}MT_PHOTOS_API_KEY", None, ("a;b", SecretStr("a;b")), None),
    ("mt_photos_clip_model", f"{P}MT_PHOTOS_CLIP_MODEL", None, ("cn-clip_RN50", "cn-clip_RN50"), None),
    ("mt_photos_ocr_model", f"{P}MT_PHOTOS_OCR_MODEL", "PP-OCRv6_small", ("a", "a"), None),
    ("mt_photos_face_model", f"{P}MT_PHOTOS_FACE_MODEL", "buffalo_l", ("a", "a"), None),
    ("mt_photos_face_min_score", f"{P}MT_PHOTOS_FACE_MIN_SCORE", 0.65, ("0.5", 0.5), "1.1"),
    ("legacy_ocr", f"{P}LEGACY_OCR", False, ("true", True), "perhaps"),
    ("host", "IMMICH_HOST", "[::]", ("127.0.0.1", "127.0.0.1"), None),
    ("port", "IMMICH_PORT", 3003, ("8080", 8080), "65536"),
    ("log_format", f"{P}LOG_FORMAT", "text", ("json", "json"), "xml"),
    ("log_level", "IMMICH_LOG_LEVEL", logging.INFO, ("debug", logging.DEBUG), "loud"),
]
IDS = [row[0] for row in VARIABLES]


@pytest.mark.parametrize(("field", "variable", "default", "good", "bad"), VARIABLES, ids=IDS)
def test_variables(
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    variable: str,
    default: object,
    good: tuple[str, object],
    bad: str | None,
) -> None:
    text, value = good
    assert value_of(load_settings(), field) == default
    monkeypatch.setenv(variable, "")
    assert value_of(load_settings(), field) == default, "empty is unset, as in Compose files"
    for name in (variable, variable.lower(), variable.title()):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(name, text)
        assert value_of(load_settings(), field) == value
        if bad is not None:
            monkeypatch.setenv(name, bad)
            with pytest.raises(ConfigurationError) as caught:
                load_settings()
            assert str(caught.value).startswith(f"{variable}={bad}: ")
            assert "\n" not in str(caught.value)
        monkeypatch.delenv(name)


def test_every_setting_is_tested_here() -> None:
    fields = set(Settings.model_fields) | {f"max_batch_size.{name}" for name in MaxBatchSize.model_fields}
    fields |= {f"preload.{task}.{kind}" for task, kinds in Preload().model_dump().items() for kind in kinds}
    missing = fields - {"max_batch_size", "preload"} - {row[0] for row in VARIABLES}
    assert not missing


def test_names_nobody_knows_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = load_settings()
    # What Kubernetes injects for a service called `machine-learning`.
    monkeypatch.setenv(f"{P}PORT", "tcp://10.0.0.1:3003")
    monkeypatch.setenv(f"{P}HOST", "10.0.0.1")
    monkeypatch.setenv(f"{P}SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(f"{P}SERVICE_PORT", "3003")
    monkeypatch.setenv(f"{P}PORT_3003_TCP_ADDR", "10.0.0.1")
    # The stock server's, for other hardware or internal; and typing errors.
    monkeypatch.setenv(f"{P}ANN", "maybe")
    monkeypatch.setenv(f"{P}RKNN_THREADS", "x")
    monkeypatch.setenv(f"{P}TEST_FULL", "x")
    monkeypatch.setenv(f"{P}LOG_LEVEL", "loud")
    monkeypatch.setenv(f"{P}MODEL_ARENAS", "x")
    monkeypatch.setenv(f"{P}MAX_BATCH_SIZE__TEXT", "x")
    for name in ("HOST", "PORT", "LOG_LEVEL", "CACHE_FOLDER", "IMMICH_NOPE"):
        monkeypatch.setenv(name, "tcp://nope")
    assert load_settings() == usual


def test_several_bad_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMMICH_PORT", "tcp://1")
    monkeypatch.setenv(f"{P}REQUEST_THREADS", "q")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == {
        "IMMICH_PORT=tcp",
        f"{P}REQUEST_THREADS=q",
    }


@pytest.mark.parametrize("text", ["[]", '"a"', "5", "{", '{"a":1}', '{"a":null}', '{"a":{"b":"c"}}'])
def test_aliases_that_are_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(f"{P}MODEL_ALIASES", text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{P}MODEL_ALIASES")


def test_batch_sizes_as_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{P}MAX_BATCH_SIZE", '{"ocr": 3}')
    monkeypatch.setenv(f"{P}MAX_BATCH_SIZE__FACIAL_RECOGNITION", "2")
    assert load_settings().max_batch_size == MaxBatchSize(ocr=3, facial_recognition=2)
    monkeypatch.setenv(f"{P}MAX_BATCH_SIZE", "3")
    with pytest.raises(ConfigurationError, match=f"{P}MAX_BATCH_SIZE"):
        load_settings()


@pytest.mark.parametrize(
    ("word", "level"),
    [
        *(("verbose", logging.DEBUG), ("debug", logging.DEBUG), ("log", logging.INFO), ("info", logging.INFO)),
        *(("warn", logging.WARNING), ("warning", logging.WARNING), ("error", logging.ERROR)),
        *(
            ("fatal", logging.CRITICAL),
            ("critical", logging.CRITICAL),
            ("INFO", logging.INFO),
            ("Warn", logging.WARNING),
        ),
    ],
)
def test_log_levels(monkeypatch: pytest.MonkeyPatch, word: str, level: int) -> None:
    monkeypatch.setenv("IMMICH_LOG_LEVEL", word)
    assert load_settings().log_level == level


# ---------------------------------------------------------------- listening

HAS_IPV6 = socket.has_dualstack_ipv6()
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")


def reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


@needs_ipv6
@pytest.mark.parametrize("host", ["[::]", "::"])
def test_the_default_takes_both_protocols(host: str) -> None:
    with closing(listen(host, 0)) as listener:
        port = listener.getsockname()[1]
        assert reaches("127.0.0.1", port)
        assert reaches("::1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_ipv4_alone(host: str) -> None:
    with closing(listen(host, 0)) as listener:
        assert listener.family == socket.AF_INET
        assert reaches("127.0.0.1", listener.getsockname()[1])


@needs_ipv6
@pytest.mark.parametrize("host", ["[::1]", "::1"])
def test_ipv6_alone(host: str) -> None:
    with closing(listen(host, 0)) as listener:
        assert reaches("::1", listener.getsockname()[1])
        assert not reaches("127.0.0.1", listener.getsockname()[1])


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with closing(listen("[::]", 0)) as listener:
        assert listener.family == socket.AF_INET
        assert reaches("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize("host", ["192.0.2.1", "999.1.1.1", "::g", "a b", "é..é", "x" * 300, "no-such-host.invalid"])
def test_addresses_that_cannot_be(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        listen(host, 0)
    assert str(caught.value).startswith(f"IMMICH_HOST={host} IMMICH_PORT=0: cannot listen there (")


def test_an_answer_waits_for_no_acknowledgement() -> None:
    with closing(listen("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()[:2]):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_in_use() -> None:
    with closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"IMMICH_PORT={port}: cannot listen there .*in use"):
            listen("127.0.0.1", port)


# ---------------------------------------------------------------- the process


def start(**variables: str) -> subprocess.CompletedProcess[str]:
    """Start the server where it must fail."""
    command = [sys.executable, "-m", "immich_ml_compat", "serve"]
    environment = os.environ | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_the_server_refuses_bad_settings_with_code_2(tmp_path: Path) -> None:
    with closing(listen("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        run = start(IMMICH_HOST="127.0.0.1", IMMICH_PORT=port)
    assert run.returncode == 2
    assert f"IMMICH_PORT={port}: cannot listen there" in run.stderr
    assert "Traceback" not in run.stderr
    run = start(IMMICH_PORT="nope", IMMICH_LOG_LEVEL="loud")
    assert run.returncode == 2
    assert [line.partition(":")[0] for line in run.stderr.splitlines()] == ["IMMICH_PORT=nope", "IMMICH_LOG_LEVEL=loud"]
    aliases = {f"{P}MODEL_ALIASES": '{"buffalo_l": "PP-OCRv6_small"}', f"{P}CACHE_FOLDER": str(tmp_path)}
    run = start(IMMICH_HOST="127.0.0.1", IMMICH_PORT="0", **aliases)
    assert run.returncode == 2
    assert "MACHINE_LEARNING_MODEL_ALIASES: buffalo_l is a model for facial-recognition" in run.stderr
    assert "Traceback" not in run.stderr


@needs_ipv6
def test_the_server_under_kubernetes_and_at_another_log_level(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    variables = {f"{P}PORT": "tcp://10.0.0.1:3003", "IMMICH_HOST": "[::1]", "IMMICH_LOG_LEVEL": "verbose"}
    with running_server(tmp_path, tmp_path / "log", variables) as server:
        assert server.url.startswith("http://[::1]:")
        assert httpx.get(f"{server.url}/ping").text == "pong"
        assert "DEBUG" in server.log.read_text()


def test_a_part_of_a_nested_setting_without_its_last_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{P}PRELOAD__CLIP", "ViT-B-32__openai")
    with pytest.raises(ConfigurationError, match=f"{P}PRELOAD__CLIP=ViT-B-32__openai: is not a JSON object"):
        load_settings()


def test_the_cache_folder_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{P}CACHE_FOLDER", "model_cache")
    assert load_settings().cache_folder == Path.cwd() / "model_cache"
