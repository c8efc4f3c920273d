"""Variables that have no meaning here: one line for each that a user may have meant."""

import logging

import pytest

from immich_ml_compat.environment import findings, known_names

# Section 5 of the contract.
STOCK = """
    CACHE_FOLDER MODEL_TTL MODEL_TTL_POLL_S WORKERS WORKER_TIMEOUT HTTP_KEEPALIVE_TIMEOUT_S REQUEST_THREADS
    MODEL_INTER_OP_THREADS MODEL_INTRA_OP_THREADS MODEL_ARENA DEVICE_IDS PRELOAD__CLIP__TEXTUAL PRELOAD__CLIP__VISUAL
    PRELOAD__FACIAL_RECOGNITION__DETECTION PRELOAD__FACIAL_RECOGNITION__RECOGNITION PRELOAD__OCR__DETECTION
    PRELOAD__OCR__RECOGNITION MAX_BATCH_SIZE__FACIAL_RECOGNITION MAX_BATCH_SIZE__OCR
"""


def lines(*names: str) -> list[tuple[int, str]]:
    return list(findings(names))


def test_the_stock_servers_settings_are_known() -> None:
    assert set(STOCK.split()) <= set(known_names())
    assert lines(*(f"MACHINE_LEARNING_{name}" for name in STOCK.split())) == []
    assert lines("machine_learning_model_ttl") == []


@pytest.mark.parametrize("name", ["ANN", "ANN_FP16_TURBO", "RKNN_THREADS", "ROCM_PRECISION", "OPENVINO_PRECISION"])
def test_other_hardwares_variables_are_named_once(name: str) -> None:
    ((level, line),) = lines(f"MACHINE_LEARNING_{name}")
    assert level == logging.INFO
    assert name in line


def test_a_mistyped_name_is_told_with_the_nearest_one() -> None:
    ((level, line),) = lines("MACHINE_LEARNING_MODEL_TLL")
    assert level == logging.WARNING
    assert "did you mean MACHINE_LEARNING_MODEL_TTL?" in line
    ((_, line),) = lines("MACHINE_LEARNING_ZZZ")
    assert "did you mean" not in line


@pytest.mark.parametrize(
    "name",
    [
        "PORT",
        "PORT_3003_TCP",
        "PORT_3003_TCP_ADDR",
        "PORT_3003_TCP_PROTO",
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
    ],
)
def test_what_kubernetes_sets_is_passed_over(name: str) -> None:
    assert lines(f"MACHINE_LEARNING_{name}", "PATH", "IMMICH_PORT") == []


@pytest.mark.parametrize(("name", "meant"), [("HOST", "IMMICH_HOST"), ("LOGLEVEL", "IMMICH_LOG_LEVEL")])
def test_settings_without_the_prefix_are_pointed_to(name: str, meant: str) -> None:
    ((level, line),) = lines(f"MACHINE_LEARNING_{name}")
    assert level == logging.WARNING
    assert line.endswith(f"did you mean {meant}?")
