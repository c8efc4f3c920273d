"""What a run was made on: the CPU, what it can do, and the versions of what computes."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    "onnxruntime",
    "openvino",
    "pillow",
    "opencv-python-headless",
    "numpy",
    "uvicorn",
    "insightface",
    "rapidocr",
)
_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)


def describe() -> dict[str, object]:
    """Return the CPU's name, its cores and features, and versions."""
    information = _cpuinfo()
    flags = set((information.get("flags") or information.get("Features") or "").split())
    name = information.get("model name") or platform.processor() or platform.machine()
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "features": [feature for feature in _FEATURES if feature in flags],
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {package: found for package in _PACKAGES if (found := _version(package))},
    }


def line(machine: dict[str, object]) -> str:
    """Say it in a line."""
    features, versions = machine["features"], machine["versions"]
    assert isinstance(features, list)
    assert isinstance(versions, dict)
    packages = ", ".join(f"{package} {found}" for package, found in versions.items())
    return (
        f"{machine['cores']} cores of {machine['cpu']} ({', '.join(features) or 'no vector extension known'}; "
        f"bf16: {'yes' if machine['bf16'] else 'no'}), Python {machine['python']}, {packages}"
    )


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    rows = (row.partition(":") for row in path.read_text().splitlines()) if path.is_file() else []
    return {key.strip(): value.strip() for key, _, value in rows}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
