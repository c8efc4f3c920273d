"""The `doctor` command: what this machine and installation can do, tried out."""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from . import __version__
from .catalog import ModelType, Task
from .downloads.downloader import HUBS
from .downloads.failures import DownloadError
from .engine.onnxruntime import OnnxRuntimeEngine
from .engine_choice import choose
from .errors import RequestError
from .machine import cpu_features, cpu_model, this_machine
from .messages import PredictRequest
from .service import Service
from .settings import ConfigurationError, Settings
from .store import ModelKey, ModelStore

_PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino", "numpy", "opencv-python-headless", "pillow",
    "tokenizers", "rapidocr",
)  # fmt: skip

_PAIRS = {
    Task.CLIP: (ModelType.VISUAL,),
    Task.FACES: (ModelType.DETECTION, ModelType.RECOGNITION),
    Task.OCR: (ModelType.DETECTION, ModelType.RECOGNITION),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `ok` is None for what is neither good nor bad."""

    topic: str
    text: str
    ok: bool | None = None


def doctor(settings: Settings) -> int:
    """Print the report; return 0, or 1 where something does not work."""
    failed = False
    for finding in examine(settings):
        mark = {True: "ok  ", False: "FAIL", None: "    "}[finding.ok]
        print(f"{mark} {finding.topic:<18} {finding.text}", flush=True)
        failed = failed or finding.ok is False
    return int(failed)


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything in turn."""
    yield Finding(
        "version", f"immich-ml-compat {__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    yield Finding("packages", ", ".join(_packages()))
    yield Finding("cpu", f"{os.cpu_count()} cores, {cpu_model()}; {' '.join(cpu_features()) or 'features unknown'}")
    yield from _devices(settings)
    yield from _cache_folder(settings)
    yield from _hubs()
    try:
        yield Finding("engine", str(choose(settings, this_machine())))
        service = Service(settings)
    except ConfigurationError as error:
        yield Finding("settings", str(error), ok=False)
        return
    for substitution in service.names.substitutions():
        yield Finding("names", substitution)
    store = ModelStore(settings.cache_folder)
    for task in Task:
        yield from _inference(service, store, task)


def _packages() -> Iterator[str]:
    for name in _PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _devices(settings: Settings) -> Iterator[Finding]:
    machine = this_machine()
    yield Finding("devices", f"ONNX Runtime offers {', '.join(OnnxRuntimeEngine().available_providers())}")
    if machine.openvino:
        from .engine.openvino import OpenVinoEngine

        offered = OpenVinoEngine().available_devices()
        devices = (f"{device} ({', '.join(capabilities)})" for device, capabilities in offered.items())
        yield Finding("devices", f"OpenVINO offers {', '.join(devices)}")
    if settings.device != "cpu":
        cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        models = [line.partition(":")[2].strip() for card in cards for line in card.read_text().splitlines()[:1]]
        yield Finding("devices", f"NVIDIA GPUs: {', '.join(models) or 'none seen'}")


def _cache_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.cache_folder.expanduser()
    if not folder.is_dir():
        yield Finding("cache", f"{folder} does not exist yet; models are looked for there")
        return
    writable = os.access(folder, os.W_OK)
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding("cache", f"{folder}, {'' if writable else 'not '}writable, {free:.1f} GB free", ok=writable or None)


def _hubs() -> Iterator[Finding]:
    """Hubs are needed for downloads alone: one out of reach is told, and no failure."""
    for make in HUBS.values():
        hub = make()
        try:
            hub.reach()
        except DownloadError as error:
            yield Finding("hubs", f"{hub.title} is out of reach: {error}. {error.remedy}")
        else:
            yield Finding("hubs", f"{hub.title} at {hub.endpoint} answers", ok=True)


def _inference(service: Service, store: ModelStore, task: Task) -> Iterator[Finding]:
    """Try one model of a task: the first that is whole and answers for itself."""
    names = [name for each, name in store.models() if each == task and service.names.answers_itself(task, name)]
    name = next((name for name in names if all(store.find(key) for key in _keys(task, name))), None)
    if name is None:
        yield Finding(task, "no model on disk to try", ok=None)
        return
    start = time.monotonic()
    answer = service.answer(PredictRequest(json.dumps(_entries(task, name)), _picture()))
    seconds = time.monotonic() - start
    if answer.status != 200:
        yield Finding(task, f"{name}: {json.loads(answer.body)['detail']}", ok=False)
        return
    try:
        providers = {service.models.execution_provider(key) for key in _keys(task, name)}
    except RequestError as error:
        yield Finding(task, f"{name}: {error.detail}", ok=False)
        return
    yield Finding(task, f"{name} answers on {', '.join(providers)}, loaded and run in {seconds:.2f} s", ok=True)


def _keys(task: Task, name: str) -> list[ModelKey]:
    return [ModelKey(task, name, kind) for kind in _PAIRS[task]]


def _entries(task: Task, name: str) -> dict[str, Any]:
    return {task: {kind: {"modelName": name} for kind in _PAIRS[task]}}


def _picture() -> bytes:
    image = Image.new("RGB", (640, 320), "white")
    ImageDraw.Draw(image).text((40, 40), "HELLO 2026", fill="black", font=ImageFont.load_default(64))
    buffer = BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()
