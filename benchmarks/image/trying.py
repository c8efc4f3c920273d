"""Tries an image out: what is promised of it in docs/deployment.md. Anything else is an AssertionError."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from benchmarks.servers import free_port
from tests.model_folders import OCR, write_models

from .building import Image
from .container import GRAPHICS_GROUP, Container, running, wait_for

_ROOT = Path(__file__).parents[2]
_START_S = 120.0
_STOP_S = 15.0
_OLD_FOLDER_MODE = 0o755


def try_cpu(image: Image, store: Path) -> None:
    """Try the CPU image: on an old volume as root, as another user, and with its second engine."""
    _check_declaration(image)
    volume, folder = _old_volume(store / "volume"), store / "container"
    port = free_port()
    serving = {"IMMICH_PORT": str(port), "MACHINE_LEARNING_PRECISION": "fp32", "HF_HUB_OFFLINE": "1"}
    with running(image, volume, folder, environment=serving) as container:
        _check_start(container)
        _check_rights(container, "1000")
        assert all(str(GRAPHICS_GROUP) in status["Groups"].split() for status in container.processes())
        owners = {path.lstat().st_uid for path in volume.rglob("*")}
        assert owners == {1000}, owners
        _run_tests(port)
        _check_commands(container)
        assert container.stop(_STOP_S) == 0
        _said("as root, on a volume of root's: rights dropped, requests answered, stopped with 0")
    volume = _old_volume(volume)
    with running(image, volume, folder, environment=serving, user="1000:1000") as container:
        _check_start(container)
        _check_rights(container, "1000")
        assert "cannot write, or not read: /cache" in container.log.read_text(), container.log.read_text()
        _check_ocr(port)
        assert container.stop(_STOP_S) == 0
        _said("as user 1000, on a volume of root's: says what it cannot write, answers with what is there")
    with running(image, volume, folder, environment=serving, capabilities=()) as container:
        _check_start(container)
        assert "goes on as root" in container.log.read_text(), container.log.read_text()
        _check_ocr(port)
        _said("as root without capabilities: says so, answers")
    with running(image, volume, folder, environment=serving | {"PUID": "1234", "PGID": "4321"}) as container:
        _check_start(container)
        _check_rights(container, "1234")
        _said("with PUID and PGID: is that user")
    with running(image, volume, folder, environment=serving | {"MACHINE_LEARNING_ENGINE": "openvino"}) as container:
        _check_start(container)
        _check_ocr(port)
        run = container.execute("immich-ml-compat", "doctor")
        assert "OpenVINO on cpu in fp32" in run.stdout, run
        said = _ask_openvino(container, "CPU")
        assert "onnx_frontend" in said
        assert not any(name in said for name in ("npu", "pytorch", "tensorflow", "paddle", "jax", "gguf")), said
        _said("with OpenVINO: answers")


def try_intel(image: Image, store: Path) -> None:
    """Try the image for Intel graphics where there are none: its plugin loads, and the start says what is missing."""
    volume, folder = _old_volume(store / "volume"), store / "container"
    serving = {"IMMICH_PORT": str(free_port()), "HF_HUB_OFFLINE": "1"}
    with running(image, volume, folder, environment=serving | {"MACHINE_LEARNING_DEVICE": "cpu"}) as container:
        _check_start(container)
        assert "intel_gpu_plugin" in _ask_openvino(container, "GPU")
    with running(image, volume, folder, environment=serving) as container:
        assert container.process.wait(_START_S) == 2, container.log.read_text()
        assert "MACHINE_LEARNING_DEVICE=openvino-gpu: " in container.log.read_text()
    _said("for Intel graphics: the plugin loads; without graphics it stops with 2 and says why")


def try_cuda(image: Image, store: Path) -> None:
    """Try the CUDA image where there is no GPU: it says so and stops; its CPU part answers."""
    _check_declaration(image)
    volume, folder = _old_volume(store / "volume"), store / "container"
    port = free_port()
    serving = {"IMMICH_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with running(image, volume, folder, environment=serving) as container:
        assert container.process.wait(_START_S) == 2, container.log.read_text()
        print(container.log.read_text())
        assert "MACHINE_LEARNING_DEVICE=cuda: " in container.log.read_text()
        _said("without a GPU: stops with 2 and says why")
    with running(image, volume, folder, environment=serving | {"MACHINE_LEARNING_DEVICE": "cpu"}) as container:
        _check_start(container)
        _check_rights(container, "1000")
        _run_tests(port)
        assert container.stop(_STOP_S) == 0
        _said("on the CPU: requests answered")


def _check_declaration(image: Image) -> None:
    assert image.volumes == ("/cache",)
    assert image.ports == ("3003",)
    assert image.environment["MACHINE_LEARNING_CACHE_FOLDER"] == "/cache"
    assert image.labels["org.opencontainers.image.version"] == "try"


def _old_volume(volume: Path) -> Path:
    """Make a volume as a stock server leaves it: models, all of them root's."""
    shutil.rmtree(volume, ignore_errors=True)
    volume.mkdir(parents=True)
    write_models(volume)
    for path in (volume, *volume.rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(_OLD_FOLDER_MODE if path.is_dir() else 0o644)
    return volume


def _check_start(container: Container) -> None:
    assert wait_for(container.log, "Serving on", _START_S), container.log.read_text()
    health = container.execute(*container.image.health)
    assert health.returncode == 0, health


def _check_rights(container: Container, user: str) -> None:
    for status in container.processes():
        assert set(status["Uid"].split()) == {user}, status
        assert "0" not in status["Groups"].split(), status
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0, status


def _check_commands(container: Container) -> None:
    """What `docker exec` runs is the server's user too, so that it leaves no files of root's."""
    made = container.execute("immich-ml-compat", "models", "list")
    assert made.returncode == 0, made
    assert OCR in made.stdout, made
    refused = container.execute("touch", "/written")
    assert refused.returncode != 0, "the root file system is not read-only"


def _ask_openvino(container: Container, device: str) -> str:
    """Have OpenVINO load its plugin for a device; return what it says of it, and its libraries' names."""
    program = f"""
import openvino
from pathlib import Path
print(openvino.Core().get_versions({device!r}))
print(*sorted(path.name for path in Path(openvino.__file__).with_name("libs").iterdir()))
"""
    run = container.execute("python", "-c", program)
    assert run.returncode == 0, run
    print(run.stdout, end="")
    return run.stdout


def _check_ocr(port: int) -> None:
    model = {"modelName": OCR}
    entries = httpx.Response(200, json={"ocr": {"detection": model, "recognition": model}}).text
    image = (_ROOT / "docs/invoice.jpg").read_bytes()
    url = f"http://127.0.0.1:{port}/predict"
    answer = httpx.post(url, data={"entries": entries}, files={"image": image}, timeout=120)
    assert "Coffee" in str(answer.json()["ocr"]["text"]), answer.text


def _run_tests(port: int) -> None:
    """Run the black-box tests: requests as Immich sends them, and the contract."""
    tests = ["tests/test_recorded.py", "tests/test_conformance.py"]
    environment = os.environ | {"TEST_SERVER_URL": f"http://127.0.0.1:{port}"}
    subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=_ROOT, env=environment, check=True)


def _said(what: str) -> None:
    print(f"tried  {what}", flush=True)
