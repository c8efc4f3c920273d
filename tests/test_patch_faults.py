"""Patches put in and taken out while things go wrong: kills, signals, disks, rights, another call at work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from immich_ml_compat.cli import main
from immich_ml_compat.patches import command
from immich_ml_compat.patches.patch import JOURNAL
from immich_ml_compat.patches.transaction import alone, replace

from .oracles import missing
from .patch_trees import STOCK, edited, put_example, put_stock, snapshot, write
from .patching_process import PATCHED, STRUCK, Run, forked, strike, strike_before

ROOT = Path(__file__).parents[1]
FROM = {"apply": "stock", "revert": "patched"}
TO = {"apply": "patched", "revert": "stock"}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example patches."""
    folder = tmp_path_factory.mktemp("example")
    put_example(folder / "patches", folder / "scratch")
    return folder / "patches"


@pytest.fixture(autouse=True)
def patches_of_the_example(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "shipped", lambda: example)


def struck_everywhere(how: str, folder: Path, *options: str) -> dict[str, list[Run]]:
    words = [sys.executable, "-m", "tests.patching_process", how, str(folder), *options]
    run = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    return {direction: [Run(*entry) for entry in runs] for direction, runs in json.loads(run.stdout).items()}


# ---------------------------------------------------------------- cut off


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: what is done there is done a hundred times."""
    place = Path("/dev/shm")
    with TemporaryDirectory(dir=place if place.is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("options", [(), ("--tear", "--stride=5")], ids=["once", "again and again"])
def test_a_kill_at_any_moment_leaves_the_one_tree_or_the_other(memory: Path, options: tuple[str, ...]) -> None:
    for direction, (*killed, last) in struck_everywhere("SIGKILL", memory, *options).items():
        assert last == (0, True, False, TO[direction])
        assert len(killed) > (10 if options else 50)
        assert {run.code for run in killed} == {None}
        assert sum(run.had_changed and run.tree == FROM[direction] for run in killed) > 1, "put back"
        trees = [run.tree for run in killed]
        done = trees.index(TO[direction]) if TO[direction] in trees else len(trees)
        assert trees == [FROM[direction]] * done + [TO[direction]] * (len(trees) - done)
        if not options:
            assert any(run.put_back for run in killed[:done])
        assert not any(run.put_back for run in killed[done:])


@pytest.mark.parametrize(("how", "stride"), [("SIGTERM", 5), ("SIGINT", 7), ("ENOSPC", 3)])
def test_a_signal_or_an_error_at_any_moment_puts_everything_back_at_once(memory: Path, how: str, stride: int) -> None:
    for direction, runs in struck_everywhere(how, memory, f"--stride={stride}").items():
        assert len(runs) > 50 // stride
        assert not any(run.put_back for run in runs), "nothing was left to do"
        assert all(run.had_changed == (run.tree == TO[direction]) for run in runs)
        outcomes = {(run.code, run.tree) for run in runs}
        assert {(1, FROM[direction]), (0, TO[direction])} <= outcomes
        assert outcomes <= {(1, FROM[direction]), (0, TO[direction]), (STRUCK, TO[direction])}


@pytest.mark.parametrize("action", ["apply", "revert"])
def test_the_command_after_a_kill(tmp_path: Path, capfd: pytest.CaptureFixture[str], action: str) -> None:
    tree = put_stock(tmp_path / "tree", PATCHED if action == "revert" else STOCK)
    before = snapshot(tree)

    def killed() -> int:
        strike_before(4, tree, lambda: strike("SIGKILL"), ("os.rename",))
        return main(["patches", action, str(tree)])

    assert forked(killed) is None
    assert (tree / JOURNAL).is_dir()
    capfd.readouterr()
    assert main(["patches", "check", str(tree)]) == 0
    output, errors = capfd.readouterr()
    assert errors == f"{tree}: an earlier call was cut off; what it had changed was put back\n"
    assert ("applies" in output, "applied" in output) == (action == "apply", action == "revert")
    assert snapshot(tree) == before
    assert main(["patches", action, str(tree)]) == 0
    assert snapshot(tree) == snapshot(put_stock(tmp_path / "expected", STOCK if action == "revert" else PATCHED))


def test_what_an_interrupt_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = put_stock(tmp_path / "tree")
    before = snapshot(tree)

    def interrupted() -> int:
        handler = signal.getsignal(signal.SIGINT)
        strike_before(4, tree, lambda: strike("SIGINT"), ("os.rename",))
        code = main(["patches", "apply", str(tree)])
        return code if signal.getsignal(signal.SIGINT) is handler else 98

    assert forked(interrupted) == 1
    assert capfd.readouterr() == ("", "Interrupted by SIGINT. Nothing was changed\n")
    assert snapshot(tree) == before


# ---------------------------------------------------------------- disks and rights


def test_a_full_disk(tmp_path: Path, mount: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    tree = mount("size=400k")
    put_stock(tree)
    before = snapshot(tree)
    for free in (0, 4096, 16384, 40960):
        size = os.statvfs(tree).f_bavail * os.statvfs(tree).f_frsize
        write(tree, {"full": bytes(size - free)})
        assert main(["patches", "apply", str(tree)]) == 1
        errors = capsys.readouterr().err
        assert errors.endswith("cannot be written (No space left on device). Nothing was changed\n")
        (tree / "full").unlink()
        assert snapshot(tree) == before
    assert main(["patches", "apply", str(tree)]) == 0
    assert snapshot(tree) == snapshot(put_stock(tmp_path / "expected", PATCHED))


def test_a_read_only_disk(mount: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    tree = mount("size=1m")
    put_stock(tree)
    before = snapshot(tree)
    assert os.system(f"mount -o remount,ro {tree}") == 0
    assert main(["patches", "check", str(tree)]) == 0
    capsys.readouterr()
    assert main(["patches", "apply", str(tree)]) == 1
    assert "cannot be written (Read-only file system). Nothing was changed\n" in capsys.readouterr().err
    assert snapshot(tree) == before


@contextmanager
def held_fast(file: Path) -> Iterator[None]:
    """Make a file one that no other can take the place of, by mounting it on itself."""
    if os.geteuid() != 0 or os.system(f"mount --bind '{file}' '{file}' 2>/dev/null") != 0:
        missing("the right to mount a file system")
    try:
        yield
    finally:
        os.system(f"umount '{file}'")


@pytest.mark.parametrize("path", sorted(STOCK.keys() & PATCHED.keys() - {"server/package.json", "web/src/other.ts"}))
def test_a_file_that_cannot_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    tree = put_stock(tmp_path / "tree")
    before = snapshot(tree)
    with held_fast(tree / path):
        assert main(["patches", "apply", str(tree)]) == 1
        assert f"{tree}/{path}: cannot be written (Device or resource busy). Nothing was" in capsys.readouterr().err
    assert snapshot(tree) == before
    assert main(["patches", "apply", str(tree)]) == 0


def test_a_folder_that_may_not_be_written_to(
    example: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() != 0:
        missing("the right to become another user")
    memory.chmod(0o755)  # nobody may look into pytest's own folders
    monkeypatch.setattr(command, "shipped", lambda: memory / "patches")
    shutil.copytree(example, memory / "patches")
    tree = put_stock(memory / "tree")
    for path in (tree, *tree.rglob("*")):
        os.chown(path, 65534, 65534)
    (tree / "web/src").chmod(0o555)
    before = snapshot(tree)

    def as_nobody() -> int:
        os.setuid(65534)
        return main(["patches", "apply", str(tree)])

    assert forked(as_nobody) == 1
    errors = capfd.readouterr().err
    assert f"{tree}/web/src/" in errors
    assert "cannot be written (Permission denied). Nothing was changed\n" in errors
    assert snapshot(tree) == before


def test_what_root_writes_belongs_to_the_owner(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("the right to give files away")
    tree = put_stock(tmp_path / "tree")
    for path in (tree, *tree.rglob("*")):
        os.chown(path, 1234, 1235)
    for action in ("apply", "revert"):
        assert main(["patches", action, str(tree)]) == 0
        assert {(path.stat().st_uid, path.stat().st_gid) for path in tree.rglob("*")} == {(1234, 1235)}


def test_a_rollback_that_fails_is_made_good_by_the_next_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = put_stock(tmp_path / "tree")
    before = snapshot(tree)
    real, calls = Path.replace, 0

    def fails_from_the_third_on(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls >= 3:
            raise OSError(5, "Input/output error", str(self))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails_from_the_third_on)
        assert main(["patches", "apply", str(tree)]) == 1
    errors = capsys.readouterr().err
    assert "cannot be written (Input/output error); and" in errors
    assert "Call again when that is mended" in errors
    assert "Nothing was changed" not in errors
    assert snapshot(tree) != before
    assert main(["patches", "list", str(tree)]) == 0
    assert "what it had changed was put back" in capsys.readouterr().err
    assert snapshot(tree) == before


# ---------------------------------------------------------------- others at work


def test_calls_wait_for_each_other(example: Path, tmp_path: Path) -> None:
    tree = put_stock(tmp_path / "tree")
    program = (
        "import sys; from pathlib import Path; from immich_ml_compat.patches import command; "
        "command.shipped = lambda: Path(sys.argv[1]); from immich_ml_compat.cli import main; "
        "sys.exit(main(['patches', 'apply', sys.argv[2], 'chinese-clip']))"
    )
    with alone(tree):
        words = [sys.executable, "-c", program, str(example), str(tree)]
        other = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
        while f"-> FLOCK  ADVISORY  WRITE {other.pid} " not in Path("/proc/locks").read_text():
            assert other.poll() is None
            time.sleep(0.02)
        after = edited(["web/search-prefix"])
        replace(tree, {path: STOCK.get(path) for path in after}, after)
    assert b"with server/chinese-clip, web/search-prefix\n" in other.communicate()[0]
    assert other.returncode == 0


def test_a_file_that_changes_meanwhile_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = put_stock(tmp_path / "tree")
    place = tree / "i18n/en.json"

    def replaced(*arguments: object) -> None:
        place.write_text("mine")
        replace(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "replace", replaced)
    assert main(["patches", "apply", str(tree)]) == 1
    assert capsys.readouterr().err == f"{place}: has changed just now. Try again. Nothing was changed\n"
    assert snapshot(tree) == snapshot(put_stock(tmp_path / "expected", STOCK | {"i18n/en.json": b"mine"}))


# ---------------------------------------------------------------- a tree that somebody prepared


@pytest.mark.parametrize("listed", ['{"come": ["../secret"], "folders": [], "go": []}', '{"come": 1}', "[]", "", "{}"])
def test_a_journal_leads_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: str) -> None:
    tree = put_stock(tmp_path / "tree")
    write(tmp_path, {"secret": b"secret"})
    write(tree, {f"{JOURNAL}/list.json": listed.encode(), f"{JOURNAL}/before/i18n/en.json": b"x"})
    before = snapshot(tmp_path)
    assert main(["patches", "check", str(tree)]) == 1
    assert f"{JOURNAL}: what a call that was cut off has changed cannot be put back" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_a_journal_follows_no_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = put_stock(tmp_path / "tree")
    (tmp_path / "elsewhere").mkdir()
    (tree / "out").symlink_to(tmp_path / "elsewhere")
    listed = {"come": ["out/a"], "folders": [], "go": []}
    write(tree, {f"{JOURNAL}/list.json": json.dumps(listed).encode(), f"{JOURNAL}/before/out/b": b"x"})
    write(tmp_path, {"elsewhere/a": b"a"})
    assert main(["patches", "check", str(tree)]) == 1
    assert "is a link, which no patch follows" in capsys.readouterr().err
    assert snapshot(tmp_path / "elsewhere").keys() == {"a"}
