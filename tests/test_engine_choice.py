"""Which engine, device and precision: by the settings and by the machine."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from immich_ml_compat.engine import EngineError, onnxruntime
from immich_ml_compat.engine.full_precision import RetryInFull
from immich_ml_compat.engine.half_precision import InHalf
from immich_ml_compat.engine.onnxruntime import OnnxRuntimeEngine
from immich_ml_compat.engine.openvino import OpenVinoEngine
from immich_ml_compat.engine_choice import choose
from immich_ml_compat.engines import make_engine
from immich_ml_compat.machine import CPU_FEATURES, Machine, available_cores, cpu_features, this_machine
from immich_ml_compat.settings import ConfigurationError, Settings

PLAIN = Machine(frozenset({"avx2"}), openvino=True, cuda=False)
BF16 = Machine(frozenset({"avx2", "avx512f", "avx512_bf16"}), openvino=True, cuda=False)
AMX = Machine(frozenset({"avx512_bf16", "amx_tile", "amx_bf16"}), openvino=True, cuda=False)
GPU = Machine(frozenset({"avx512_bf16"}), openvino=True, cuda=True)
BARE = Machine(frozenset({"avx512_bf16"}), openvino=False, cuda=False)
NO_ONNX = Machine(frozenset({"avx2"}), openvino=True, cuda=True, onnx=False)
ARM = Machine(frozenset({"asimd", "bf16"}), openvino=True, cuda=False)
MACHINES = (PLAIN, BF16, AMX, GPU, BARE, NO_ONNX, ARM)


@pytest.mark.parametrize(
    ("asked", "machine", "found"),
    [
        # Left to itself.
        ({}, PLAIN, "onnxruntime cpu fp32"),
        ({}, BF16, "openvino cpu bf16"),
        ({}, AMX, "openvino cpu bf16"),
        ({}, BARE, "onnxruntime cpu fp32"),
        ({}, ARM, "onnxruntime cpu fp32"),
        ({}, GPU, "onnxruntime cuda fp16"),
        ({}, NO_ONNX, "onnxruntime cuda fp32"),
        # In part.
        ({"device": "cpu"}, GPU, "openvino cpu bf16"),
        ({"device": "cpu"}, PLAIN, "onnxruntime cpu fp32"),
        ({"engine": "onnxruntime"}, GPU, "onnxruntime cuda fp16"),
        ({"engine": "onnxruntime"}, BF16, "onnxruntime cpu fp32"),
        ({"engine": "onnxruntime", "device": "cpu"}, GPU, "onnxruntime cpu fp32"),
        ({"engine": "openvino"}, PLAIN, "openvino cpu fp32"),
        ({"engine": "openvino"}, GPU, "openvino cpu bf16"),
        ({"engine": "openvino", "precision": "fp32"}, AMX, "openvino cpu fp32"),
        ({"precision": "fp32"}, AMX, "onnxruntime cpu fp32"),
        ({"precision": "bf16"}, BF16, "openvino cpu bf16"),
        ({"device": "cuda"}, PLAIN, "onnxruntime cuda fp16"),
        ({"device": "cuda", "precision": "fp16"}, GPU, "onnxruntime cuda fp16"),
        ({"precision": "fp16"}, GPU, "onnxruntime cuda fp16"),
        ({"precision": "fp32"}, GPU, "onnxruntime cuda fp32"),
        ({"precision": "fp32"}, NO_ONNX, "onnxruntime cuda fp32"),
        ({"device": "openvino-gpu"}, PLAIN, "openvino openvino-gpu fp16"),
        ({"device": "openvino-gpu", "precision": "fp32"}, GPU, "openvino openvino-gpu fp32"),
        ({"device": "openvino-gpu", "precision": "fp16"}, BF16, "openvino openvino-gpu fp16"),
        ({"engine": "onnxruntime", "device": "openvino-gpu"}, BARE, "onnxruntime openvino-gpu fp16"),
        (
            {"engine": "onnxruntime", "device": "openvino-gpu", "precision": "fp32"},
            GPU,
            "onnxruntime openvino-gpu fp32",
        ),
    ],
)
def test_what_is_chosen(asked: dict[str, Any], machine: Machine, found: str) -> None:
    choice = choose(Settings(**asked), machine)
    assert f"{choice.engine} {choice.device} {choice.precision}" == found
    assert choice.reason
    assert "\n" not in str(choice)


@pytest.mark.parametrize(
    ("asked", "machine", "cause"),
    [
        ({"precision": "bf16"}, PLAIN, "the CPU has neither amx_bf16 nor avx512_bf16; take auto or fp32"),
        ({"precision": "bf16"}, ARM, "the CPU has neither amx_bf16"),
        ({"precision": "bf16"}, BARE, "OpenVINO is not installed"),
        ({"precision": "bf16", "engine": "onnxruntime"}, AMX, "ONNX Runtime on cpu has no bf16"),
        ({"precision": "bf16", "device": "openvino-gpu"}, AMX, "has no bf16; take auto or fp16 or fp32"),
        ({"precision": "fp16"}, BF16, "fp16 is for GPUs"),
        ({"precision": "fp16"}, NO_ONNX, "is not installed; install the package onnx, or take auto"),
        ({"precision": "bf16", "device": "cuda"}, GPU, "ONNX Runtime on cuda has no bf16; take auto or fp16 or fp32"),
        ({"precision": "int8"}, PLAIN, "it was not measured; take auto or fp32"),
        *(({"precision": "int8"}, machine, "int8 is not offered: with AVX2 it gained") for machine in MACHINES),
        ({"engine": "openvino"}, BARE, "OpenVINO is not installed; install the package openvino"),
        ({"device": "openvino-gpu"}, BARE, "OpenVINO is not installed"),
        ({"engine": "openvino", "device": "cuda"}, GPU, "OpenVINO does not run there"),
    ],
)
def test_what_cannot_be_had_is_an_error(asked: dict[str, Any], machine: Machine, cause: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose(Settings(**asked), machine)
    given = " ".join(
        f"MACHINE_LEARNING_{name.upper()}={asked[name]}" for name in ("engine", "device", "precision") if name in asked
    )
    assert str(caught.value).startswith(f"{given}: ")
    assert cause in str(caught.value)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("engine", ["auto", "onnxruntime", "openvino"])
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "openvino-gpu"])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16", "int8"])
def test_nothing_takes_the_place_of_what_was_asked_for(
    machine: Machine, engine: Any, device: Any, precision: Any
) -> None:
    settings = Settings(engine=engine, device=device, precision=precision)
    try:
        choice = choose(settings, machine)
    except ConfigurationError:
        assert (engine, device, precision) != ("auto", "auto", "auto")
        return
    for asked, got in ((engine, choice.engine), (device, choice.device), (precision, choice.precision)):
        assert asked in ("auto", got)


def test_auto_says_why_a_gpu_is_not_used_in_half_precision() -> None:
    assert "onnx" not in str(choose(Settings(), GPU)).partition(":")[2]
    assert str(choose(Settings(), NO_ONNX)) == (
        "ONNX Runtime on cuda in fp32: it was built for CUDA; "
        "in fp32 because the package onnx, with which fp16 graphs are made, is not installed"
    )
    assert "onnx" not in str(choose(Settings(precision="fp32"), NO_ONNX)).partition(":")[2]


def test_this_machine() -> None:
    machine = this_machine()
    assert machine.openvino
    assert machine.onnx
    assert not machine.cuda or "CUDAExecutionProvider" in OnnxRuntimeEngine().available_providers()
    assert list(cpu_features()) == [feature for feature in CPU_FEATURES if feature in machine.cpu_features]
    info = Path("/proc/cpuinfo")
    if info.exists() and "avx2" in info.read_text():
        assert "avx2" in machine.cpu_features


@pytest.mark.parametrize("variables", [{}, {"intra": 64}, {"inter": 64}, {"intra": 64, "inter": 64}, {"workers": 64}])
def test_openvino_has_no_more_threads_than_there_are_cores(variables: dict[str, int]) -> None:
    settings = Settings(
        engine="openvino",
        precision="fp32",
        model_intra_op_threads=variables.get("intra", 0),
        model_inter_op_threads=variables.get("inter", 0),
        workers=variables.get("workers", 1),
    )
    scheduled = make_engine(choose(settings, PLAIN), settings)
    for width in (scheduled.scheduler.narrow, scheduled.scheduler.wide):
        engine = scheduled.engine_of(width)
        assert isinstance(engine, OpenVinoEngine)
        assert 1 <= engine.streams <= engine.threads <= available_cores()
        assert engine.threads == (1 if "workers" in variables else available_cores())


CUDA = "CUDAExecutionProvider" in OnnxRuntimeEngine().available_providers()


@pytest.mark.skipif(CUDA, reason="this ONNX Runtime was built for CUDA")
def test_where_cuda_does_not_work() -> None:
    """The machine looks as if it had a GPU, and ONNX Runtime cannot use it."""
    for settings in (Settings(), Settings(engine="onnxruntime"), Settings(precision="fp32")):
        scheduled = make_engine(choose(settings, GPU), settings)
        engine = scheduled.engine_of(1)
        assert isinstance(engine, OnnxRuntimeEngine)
        assert engine.device == "cpu"
        assert engine.optimized is not None
        assert scheduled.scheduler.max_batch == 1
    for settings in (Settings(device="cuda"), Settings(precision="fp16")):
        with pytest.raises(ConfigurationError, match=r"has no CUDA: in place of it install onnxruntime-gpu$"):
            make_engine(choose(settings, GPU), settings)


@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
def test_on_a_gpu_graphs_run_in_half_precision(precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeEngine, "check", lambda _: None)  # there is none here
    settings = Settings(device="cuda", precision=precision, cache_folder=tmp_path)
    scheduled = make_engine(choose(settings, GPU), settings, device_id=3)
    engine = scheduled.engine_of(1)
    assert scheduled.scheduler.max_batch > 1
    if precision != "fp32":
        assert isinstance(engine, InHalf)
        assert engine.forms.folder.parent == tmp_path / ".compiled"
        assert engine.forms.folder.name.endswith("-fp16-batch")
        engine = engine.engine
    assert isinstance(engine, OnnxRuntimeEngine)
    assert (engine.device, engine.device_id, engine.optimized) == ("cuda", 3, None)


def test_in_less_than_single_precision_there_is_a_way_back() -> None:
    settings = Settings(engine="openvino")
    if not {"amx_bf16", "avx512_bf16"} & this_machine().cpu_features:
        with pytest.raises(ConfigurationError, match=r"^MACHINE_LEARNING_ENGINE=openvino: OpenVINO has no bf16"):
            make_engine(choose(settings, BF16), settings)
        return
    engine = make_engine(choose(settings, this_machine()), settings)
    assert isinstance(engine.engine_of(1), RetryInFull)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PRECISION": "int8"}, "MACHINE_LEARNING_PRECISION=int8: int8 is not offered: "),
        ({"ENGINE": "openvino", "DEVICE": "cuda"}, "MACHINE_LEARNING_ENGINE=openvino MACHINE_LEARNING_DEVICE=cuda: "),
        ({"DEVICE": "openvino-gpu", "DEVICE_IDS": "7"}, "MACHINE_LEARNING_DEVICE=openvino-gpu: OpenVINO cannot use"),
        (
            {"ENGINE": "onnxruntime", "DEVICE": "openvino-gpu"},
            "MACHINE_LEARNING_ENGINE=onnxruntime MACHINE_LEARNING_DEVICE=openvino-gpu: This build of ONNX Runtime",
        ),
    ],
)
def test_the_server_does_not_start_without_it(tmp_path: Path, variables: dict[str, str], message: str) -> None:
    environment = os.environ | {f"MACHINE_LEARNING_{name}": value for name, value in variables.items()}
    environment |= {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path), "IMMICH_HOST": "127.0.0.1", "IMMICH_PORT": "0"}
    command = [sys.executable, "-m", "immich_ml_compat"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert re.search(f"^{re.escape(message)}", run.stderr, re.MULTILINE)
    assert "Traceback" not in run.stderr


@pytest.fixture
def unusable_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ONNX Runtime had been built for CUDA and a driver were there; nothing can be computed on it."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(OnnxRuntimeEngine, "available_providers", lambda _: providers)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)


@pytest.mark.usefixtures("unusable_gpu")
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")  # ONNX Runtime's own word of it
def test_a_gpu_that_cannot_compute_is_an_error_where_it_was_asked_for() -> None:
    settings = Settings(device="cuda", device_ids="3")  # type: ignore[arg-type]
    message = (
        r"^MACHINE_LEARNING_DEVICE=cuda: GPU 3 cannot be used by ONNX Runtime [\d.]+ for CUDA.*: CUDAEx.*CPU image"
    )
    with pytest.raises(ConfigurationError, match=message):
        make_engine(choose(settings, GPU), settings, device_id=3)


@pytest.mark.usefixtures("unusable_gpu")
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_gpu_that_cannot_compute_gives_way_where_it_was_not(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings()
    with caplog.at_level(logging.INFO):
        scheduled = make_engine(choose(settings, GPU), settings)
    engine = scheduled.engine_of(1)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert (engine.device, scheduled.scheduler.cores) == ("cpu", available_cores())
    assert "ONNX Runtime on cpu in fp32: the GPU does not work here: GPU 0 cannot be used" in caplog.text


def test_a_gpu_that_is_lost_is_an_error(tmp_path: Path) -> None:
    """ONNX Runtime would go on with the CPU, and say so on standard output only."""
    path = tmp_path / "sum.onnx"
    path.write_bytes(onnxruntime._SMALLEST)
    session = OnnxRuntimeEngine("cpu").load(path)
    session._session._sess = lost = MagicMock()
    lost.run.side_effect = EPFail("the device is gone")
    lost.is_webgpu_graph_capture_enabled.return_value = False
    with pytest.raises(EngineError, match=r"sum\.onnx: the device is gone$"):
        session.run({session.inputs[0].name: np.ones(1, np.float32)})


def test_every_error_of_onnx_runtime_is_known() -> None:
    assert {"Fail", "EPFail", "RuntimeException", "InvalidProtobuf"} <= {
        error.__name__ for error in onnxruntime._ERRORS
    }


def test_another_way_of_rewriting_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(device="cpu", engine="onnxruntime", cache_folder=tmp_path)
    folders = []
    for form in ("one", "two"):
        monkeypatch.setattr(onnxruntime, "FORM", form)
        engine = make_engine(choose(settings, GPU), settings).engine_of(1)
        assert isinstance(engine, OnnxRuntimeEngine)
        assert engine.optimized is not None
        folders.append(engine.optimized.folder.name)
    assert [f"-{form}-" in folder for form, folder in zip(("one", "two"), folders, strict=True)] == [True, True]
