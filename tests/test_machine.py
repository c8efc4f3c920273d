"""What the machine is said to have, read from files of the test's own and compared with the system's own tools."""

import os
import string
import subprocess
from math import inf
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from immich_ml_compat import machine
from immich_ml_compat.machine import available_cores, cpu_kind, cpu_quota


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("max 100000\n", inf),
        ("", inf),
        ("100000\n", inf),
        ("0 100000\n", inf),
        ("100000 0\n", inf),
        ("many 100000\n", inf),
    ],
)
def test_the_quota_of_a_control_group(tmp_path: Path, content: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("250000", 2.5), ("-1", inf), ("", inf)])
def test_the_quota_of_a_control_group_of_version_1(tmp_path: Path, quota: str, cores: float) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == cores


def test_no_control_group_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == inf


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(string.printable))
def test_whatever_stands_there_is_no_failure(tmp_path: Path, content: str) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert cpu_quota(tmp_path) > 0


@pytest.mark.parametrize(("quota", "cores"), [(inf, None), (0.2, 1), (1.0, 1), (1e9, None)])
def test_the_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch, quota: float, cores: int | None) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert available_cores() == (cores or len(os.sched_getaffinity(0)))


def test_a_cpu_is_named_by_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = cpu_kind()
    assert mine == cpu_kind()
    assert mine.startswith(subprocess.check_output(["uname", "-m"], text=True).strip() + "-")
    assert "/" not in mine
    monkeypatch.setattr(machine, "cpu_features", lambda: ["another"])
    assert cpu_kind() != mine
