"""Packages that tests compare with, and the real models their wheels carry.

Where one is missing a test is skipped on a developer's machine and fails where `CI=true`.
"""

import importlib
import os
import sys
from functools import cache
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

import pytest

CI = os.environ.get("CI") == "true"
SHARED = Path(__file__).parents[2] / "shared"


def missing(what: str) -> None:
    """End the test: a failure under CI, a skip elsewhere."""
    if CI:
        pytest.fail(f"{what} is not there, and CI=true")
    pytest.skip(f"{what} is not there")


def oracle(name: str) -> ModuleType:
    """Import a package to compare with."""
    if find_spec(name.partition(".")[0]) is None:
        missing(f"the package {name}")
    return importlib.import_module(name)


@cache
def chinese_clip() -> ModuleType:
    """Import `cn_clip.clip`: the original Chinese-CLIP, on torch and torchvision's transforms."""
    for package in ("torch", "torchvision"):
        spec = find_spec(package)
        if spec is None:
            missing(f"the package {package}")
        elif package == "torchvision":
            # Its __init__ loads compiled operators, which fit one build of torch only. The transforms need none.
            sys.modules.setdefault(package, module_from_spec(spec))
    return oracle("cn_clip.clip")


def packaged(package: str, path: str) -> Path:
    """Return the path of a file inside an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        missing(f"the package {package}")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / path


def golden(task: str) -> Path:
    """Return the folder of the stock server's answers; it is no part of a clone."""
    folder = SHARED / "golden" / task
    if not folder.is_dir():
        pytest.skip(f"../shared/golden/{task} is not there: it comes with no clone")
    return folder
