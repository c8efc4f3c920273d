"""Which engine runs the models, on what and in which precision: by the settings and by what the machine has.

Loads no engine, nor numpy: the front asks too.
"""

from dataclasses import dataclass
from typing import Literal

from .machine import Machine
from .settings import PREFIX, ConfigurationError, Settings

EngineName = Literal["onnxruntime", "openvino"]
Device = Literal["cpu", "cuda", "openvino-gpu"]
Precision = Literal["fp32", "bf16", "fp16"]

_TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}

# With either, OpenVINO computes in bf16 at about twice the speed; without, it could only round to it.
_BF16_FEATURES = ("amx_bf16", "avx512_bf16")

_AS_SET = "as set"

_NO_ONNX = "the package onnx, with which fp16 graphs are made, is not installed"


@dataclass(frozen=True)
class Choice:
    """What the models run in and on, and why."""

    engine: EngineName
    device: Device
    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{_TITLES[self.engine]} on {self.device} in {self.precision}: {self.reason}"


def choose(settings: Settings, machine: Machine) -> Choice:
    """Choose. Raises ConfigurationError for what was asked for and cannot be had: nothing takes its place."""
    engine, device, reason = _engine(settings, machine)
    if engine == "openvino" and not machine.openvino:
        raise refusal(settings, "OpenVINO is not installed; install the package openvino, or take auto")
    if device == "cuda" and not machine.onnx:
        if settings.precision == "fp16":
            raise refusal(settings, f"{_NO_ONNX}; install the package onnx, or take auto")
        if settings.precision == "auto":
            reason = f"{reason}; in fp32 because {_NO_ONNX}"
    offered = _precisions(machine, engine, device)
    if settings.precision == "auto":
        return Choice(engine, device, offered[0], reason)
    for precision in offered:
        if precision == settings.precision:
            return Choice(engine, device, precision, reason)
    what = _why_not(settings.precision, engine, device)
    raise refusal(settings, f"{what}; take auto or {' or '.join(offered)}")


def _engine(settings: Settings, machine: Machine) -> tuple[EngineName, Device, str]:
    """The engine, the device and the reason."""
    engine, device = settings.engine, settings.device
    if (engine, device) == ("openvino", "cuda"):
        raise refusal(settings, f"OpenVINO does not run there; take {PREFIX}ENGINE=auto")
    if device == "openvino-gpu":
        return "onnxruntime" if engine == "onnxruntime" else "openvino", device, _AS_SET
    if engine == "openvino":
        return engine, "cpu", _AS_SET
    if device == "cuda":
        return "onnxruntime", device, _AS_SET
    if device == "auto" and machine.cuda:
        return "onnxruntime", "cuda", "it was built for CUDA"
    if engine == "onnxruntime":
        return engine, "cpu", _AS_SET
    chosen, reason = _engine_for_the_cpu(settings, machine)
    return chosen, "cpu", reason


def _engine_for_the_cpu(settings: Settings, machine: Machine) -> tuple[EngineName, str]:
    """The rule that measurements change (benchmarks/RESULTS.md)."""
    if settings.precision == "bf16":
        return "openvino", f"{PREFIX}PRECISION=bf16"
    features = _bf16_features(machine)
    if settings.precision == "auto" and features and machine.openvino:
        return "openvino", f"the CPU has {features[0]}, with which it computes a graph in half the time"
    return "onnxruntime", "it computes more per second in fp32, a thread to each graph"


def _precisions(machine: Machine, engine: EngineName, device: Device) -> tuple[Precision, ...]:
    """What can be had, best first."""
    if device == "openvino-gpu" or (device == "cuda" and machine.onnx):
        return "fp16", "fp32"
    if engine == "openvino" and _bf16_features(machine):
        return "bf16", "fp32"
    return ("fp32",)


def _why_not(precision: str, engine: EngineName, device: Device) -> str:
    if precision == "int8":  # benchmarks/README.md has the figures
        return "int8 is not offered: with AVX2 it gained OCR too little to pay, elsewhere it was not measured"
    if precision == "fp16" and device == "cpu":
        return "fp16 is for GPUs"
    if precision == "bf16" and (engine, device) == ("openvino", "cpu"):
        return f"the CPU has neither {' nor '.join(_BF16_FEATURES)}"
    return f"{_TITLES[engine]} on {device} has no {precision}"


def _bf16_features(machine: Machine) -> list[str]:
    return [feature for feature in _BF16_FEATURES if feature in machine.cpu_features]


def refusal(settings: Settings, message: str) -> ConfigurationError:
    """Return the error for settings that cannot be had; it names those that were not left to themselves."""
    asked = {field: getattr(settings, field) for field in ("engine", "device", "precision")}
    given = " ".join(f"{PREFIX}{field.upper()}={value}" for field, value in asked.items() if value != "auto")
    return ConfigurationError(f"{given or f'{PREFIX}ENGINE=auto'}: {message}")
