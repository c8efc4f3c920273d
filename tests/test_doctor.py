"""The doctor tells what works, what does not, and says it with its exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .hub import TestHub
from .model_folders import CLIP, FACES, OCR


def doctor(cache: Path, **variables: str) -> tuple[int, dict[str, list[str]]]:
    """Run the command; return its exit code, and its lines by topic with their marks."""
    environment = os.environ | {"MACHINE_LEARNING_CACHE_FOLDER": str(cache)} | variables
    command = [sys.executable, "-m", "immich_ml_compat", "doctor"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines: dict[str, list[str]] = {}
    for line in run.stdout.splitlines():
        mark, topic, text = line[:4].strip(), line[5:].split()[0], line[5:].split(maxsplit=1)[1]
        lines.setdefault(topic, []).append(f"{mark} {text}".strip())
    return run.returncode, lines


@pytest.mark.parametrize(
    ("engine", "chosen", "provider"),
    [
        ("onnxruntime", "ONNX Runtime on cpu in fp32: as set", "CPUExecutionProvider"),
        ("openvino", "OpenVINO on cpu in fp32: as set", "OpenVINO CPU (f32)"),
    ],
)
def test_a_good_installation(cache: Path, engine: str, chosen: str, provider: str) -> None:
    variables = {"ENGINE": engine, "PRECISION": "fp32", "DEVICE": "cpu"}
    code, lines = doctor(cache, **{f"MACHINE_LEARNING_{name}": value for name, value in variables.items()})
    assert code == 0
    for task, name in (("clip", CLIP), ("facial-recognition", FACES), ("ocr", "PP-OCRv4_mobile")):
        (line,) = lines[task]
        assert line.startswith(f"ok {name} answers on {provider}, loaded")
    assert lines["engine"] == [chosen]
    assert "onnxruntime " in lines["packages"][0]
    assert "openvino " in lines["packages"][0]
    assert any(line.startswith("OpenVINO offers CPU (FP32") for line in lines["devices"])
    assert f"{os.cpu_count()} cores" in lines["cpu"][0]
    assert "writable" in lines["cache"][0]
    assert [line.split(" ")[0] for line in lines["hubs"]] == ["Hugging", "ModelScope"]
    assert all("out of reach" in line for line in lines["hubs"]), "the tests keep away from the real ones"


def test_without_models_the_built_in_one_is_tried(tmp_path: Path) -> None:
    code, lines = doctor(tmp_path / "nothing")
    assert code == 0
    assert "does not exist yet" in lines["cache"][0]
    assert lines["clip"] == ["no model on disk to try"]
    assert lines["ocr"][0].startswith(f"ok {OCR} answers")


def test_what_is_tried_is_what_answers(cache: Path) -> None:
    code, lines = doctor(cache, MACHINE_LEARNING_CLIP_MODEL=CLIP)
    assert code == 0
    assert lines["clip"][0].startswith(f"ok {CLIP} answers on")
    assert lines["names"][0].endswith(f"{CLIP} (MACHINE_LEARNING_CLIP_MODEL); select {CLIP} in Immich")
    code, lines = doctor(cache, CLIP_MODEL="ViT-L-14")
    assert code == 0
    assert lines["clip"] == ["no model on disk to try"], "those that are there answer nothing"


def test_hubs_in_reach_are_told(tmp_path: Path, hub: TestHub) -> None:
    code, lines = doctor(tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.url, MODELSCOPE_DOMAIN=hub.url)
    assert code == 0
    assert lines["hubs"] == [f"ok Hugging Face at {hub.url} answers", f"ok ModelScope at {hub.url} answers"]


def test_a_model_that_does_not_run_is_a_failure(tmp_path: Path) -> None:
    for kind in ("detection", "recognition"):
        graph = tmp_path / "ocr" / "A-first" / kind / "model.onnx"
        graph.parent.mkdir(parents=True)
        graph.write_bytes(b"no graph")
    code, lines = doctor(tmp_path)
    assert code == 1
    assert lines["ocr"] == ["FAIL A-first: Failed to load model 'A-first'"]


@pytest.mark.parametrize(("variable", "value"), [("MACHINE_LEARNING_DEVICE", "cuda")])
def test_a_device_that_cannot_be_had_is_a_failure(cache: Path, variable: str, value: str) -> None:
    code, lines = doctor(cache, **{variable: value})
    assert code == 1
    assert lines["settings"][0].startswith(f"FAIL {variable}={value}: ")
