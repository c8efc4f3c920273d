"""The images' entry point (deploy/image/start), as root and as somebody else."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .oracles import missing

START = Path(__file__).parents[1] / "deploy/image/start"
SHOW = (
    "sh",
    "-c",
    "id -u; id -g; id -G; grep -E 'CapEff|NoNewPrivs' /proc/self/status; touch \"$MACHINE_LEARNING_CACHE_FOLDER/made\"",
)

Mount = Callable[[str], Path]
Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can get to, as pytest's own is not."""
    with TemporaryDirectory(prefix="entry-point-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def mount(place: Path) -> Iterator[Mount]:
    """Mounts a small file system, which needs root."""
    folder = place / "cache"
    folder.mkdir()

    def mount(options: str) -> Path:
        if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=4m,{options} test {folder} 2>/dev/null") != 0:
            missing("the right to mount a file system")
        return folder

    yield mount
    os.system(f"umount -R -l {folder} 2>/dev/null")


@pytest.fixture
def volume(mount: Mount) -> Path:
    """A volume as a stock server leaves it: root's."""
    folder = mount("mode=755")
    (folder / "clip/model").mkdir(parents=True)
    (folder / "clip/model/model.onnx").write_bytes(b"weights")
    (folder / "clip/model/model.onnx").chmod(0o600)
    return folder


@pytest.fixture
def start(place: Path) -> Start:
    """Runs the entry point with tini's place taken by what only runs what follows the `--`."""
    tini = place / "tini"
    tini.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    tini.chmod(0o755)
    script = place / "start"
    script.write_bytes(START.read_bytes())

    def start(
        folder: Path, command: Sequence[str] = SHOW, user: int | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{place}:{os.environ['PATH']}", "MACHINE_LEARNING_CACHE_FOLDER": str(folder)}
        return subprocess.run(
            ["sh", str(script), *command],
            env=environment | variables,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            capture_output=True,
            text=True,
            check=False,
        )

    return start


def owners(folder: Path) -> set[tuple[int, int]]:
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in (folder, *folder.rglob("*"))}


def test_a_volume_of_roots_is_given_away_and_so_are_the_rights(volume: Path, start: Start) -> None:
    run = start(volume)
    assert (run.returncode, run.stderr) == (0, "")
    user, group, groups, capabilities, privileges = run.stdout.splitlines()
    assert (user, group) == ("1000", "1000")
    assert "0" not in groups.split()
    assert int(capabilities.split()[1], 16) == 0
    assert privileges.split()[1] == "1"
    assert owners(volume) == {(1000, 1000)}
    assert (volume / "made").exists()


def test_the_user_can_be_chosen(volume: Path, start: Start) -> None:
    run = start(volume, PUID="1234", PGID="4321")
    assert run.stdout.splitlines()[:2] == ["1234", "4321"]
    assert owners(volume) == {(1234, 4321)}


def test_the_group_may_be_roots(volume: Path, start: Start) -> None:
    run = start(volume, PGID="0")
    assert run.stdout.splitlines()[:3] == ["1000", "0", "0"]
    assert run.stderr == ""


def test_what_is_right_is_not_touched(volume: Path, start: Start) -> None:
    start(volume)
    before = {path: path.lstat().st_ctime_ns for path in volume.rglob("*")}
    start(volume, ("true",))
    assert {path: path.lstat().st_ctime_ns for path in volume.rglob("*")} == before


def test_a_link_is_not_followed(volume: Path, start: Start, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("somebody else's")
    (volume / "link").symlink_to(other)
    start(volume)
    assert other.stat().st_uid == 0


def test_what_lies_on_another_volume_inside_stays_as_it_is(volume: Path, start: Start) -> None:
    inner = volume / "ocr"
    inner.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m,mode=755 test {inner} 2>/dev/null") != 0:
        missing("the right to mount a file system")
    (inner / "mine").touch()
    run = start(volume)
    assert (run.returncode, (inner / "mine").stat().st_uid) == (0, 0)


def test_a_folder_that_is_no_volume_is_not_given_away(start: Start, place: Path) -> None:
    if os.geteuid() != 0:
        missing("root")
    folder = place / "here"
    folder.mkdir()
    run = start(folder, ("true",))
    assert folder.stat().st_uid == 0
    assert f"user 1000 cannot write, or not read: {folder}. " in run.stderr
    assert run.returncode == 0


def test_root_may_be_asked_for(volume: Path, start: Start) -> None:
    run = start(volume, PUID="0", PGID="0")
    assert run.stdout.splitlines()[0] == "0"
    assert owners(volume) == {(0, 0)}


@pytest.mark.parametrize("variables", [{"PUID": "me"}, {"PGID": "-1"}, {"PUID": "1000:1000"}])
def test_no_number_stops_the_start(volume: Path, start: Start, variables: dict[str, str]) -> None:
    run = start(volume, **variables)
    assert run.returncode == 2
    assert "they take numbers" in run.stderr
    assert owners(volume) == {(0, 0)}


def test_another_user_is_told_what_is_closed(volume: Path, start: Start) -> None:
    run = start(volume, ("id", "-u"), user=1500)
    assert (run.returncode, run.stdout) == (0, "1500\n")
    for path in (volume, volume / "clip", volume / "clip/model"):
        assert str(path) in run.stderr
    assert owners(volume) == {(0, 0)}


def test_another_user_with_a_volume_of_its_own_is_told_nothing(mount: Mount, start: Start) -> None:
    folder = mount("mode=755,uid=1500,gid=1500")
    run = start(folder, ("true",), user=1500)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_volume_for_reading_only_is_told_of(volume: Path, start: Start) -> None:
    assert os.system(f"mount -o remount,ro {volume}") == 0
    run = start(volume, ("true",))
    assert run.returncode == 0
    assert f"cannot write, or not read: {volume}" in run.stderr
