"""What this machine and installation have to compute with, told without loading an engine."""

import ctypes
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from math import ceil, inf
from pathlib import Path

# What inference engines have fast paths for, as Linux names it.
CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What the choice of an engine depends on."""

    cpu_features: frozenset[str]
    """Those of CPU_FEATURES that the CPU has."""

    openvino: bool
    """Whether OpenVINO is installed."""

    cuda: bool
    """Whether the installed ONNX Runtime was built for CUDA, and there is a driver for it."""

    onnx: bool = True
    """Whether the package onnx is installed, which writes graphs."""


def this_machine() -> Machine:
    """Look at this one."""
    openvino, onnx = (find_spec(package) is not None for package in ("openvino", "onnx"))
    return Machine(frozenset(cpu_features()), openvino, _onnxruntime_has_cuda(), onnx)


def available_cores() -> int:
    """Return the cores that this process may use: a container may be given fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota == inf else max(1, min(cores, ceil(quota)))


def cpu_quota(cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the cores' worth of time that the control group is given (`cpus:` in compose); infinity without a limit.

    Files: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and those of version 1.
    """
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return inf
    try:
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else inf
    except ValueError:  # "max"
        return inf


def cpu_model() -> str:
    """Return the CPU's name, its architecture where the system does not tell."""
    return next(_cpu_info("model name"), platform.machine())


def cpu_kind() -> str:
    """Return a short name for all CPUs that are like this one, for a file name."""
    text = f"{platform.machine()} {cpu_model()} {' '.join(cpu_features())}"
    return f"{platform.machine()}-{sha256(text.encode()).hexdigest()[:8]}"


def cpu_features() -> list[str]:
    """Return those of CPU_FEATURES that the CPU has; none where the system does not tell."""
    flags = next(_cpu_info("flags", "Features"), "").split()
    return [feature for feature in CPU_FEATURES if feature in flags]


def _cpu_info(*fields: str) -> Iterator[str]:
    """Yield the values of Linux's fields of these names, one for each core."""
    for line in _cpu_info_lines():
        name, _, value = line.partition(":")
        if name.strip() in fields:
            yield value.strip()


@cache
def _cpu_info_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _onnxruntime_has_cuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:  # no driver
        return False
    spec = find_spec("onnxruntime")
    folders = spec.submodule_search_locations if spec else None
    return any(any(Path(folder, "capi").glob("*onnxruntime_providers_cuda*")) for folder in folders or ())
