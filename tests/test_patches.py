"""`immich-ml-compat patches`: what it says of small source trees, and what it makes of them."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from immich_ml_compat.cli import main
from immich_ml_compat.patches import command

from .patch_trees import (
    EDITS,
    EXECUTABLE,
    PAGE,
    STOCK,
    Files,
    Snapshot,
    diff,
    edited,
    git,
    put_example,
    put_patch,
    put_stock,
    snapshot,
    write,
)

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[1]
NAMES = sorted(EDITS)
ENGLISH = "i18n/en.json"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example patches."""
    folder = tmp_path_factory.mktemp("example")
    put_example(folder / "patches", folder / "scratch")
    return folder / "patches"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The stock tree."""
    return put_stock(tmp_path / "immich")


@pytest.fixture
def run(example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a `patches` command with the example patches and return its exit code, output and errors."""
    monkeypatch.setattr(command, "shipped", lambda: example)

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["patches", *map(str, words)])
        output, errors = capsys.readouterr()
        return code, output, errors

    return run


def expected(folder: Path, names: Iterable[str]) -> Snapshot:
    """What a tree with some of the example patches is."""
    return snapshot(put_stock(folder, edited(names)))


# ---------------------------------------------------------------- what it says


def test_list(run: Run) -> None:
    code, output, errors = run("list")
    assert (code, errors) == (0, "")
    assert output.splitlines()[:5] == [
        "Immich 3.1.0",
        "  server/chinese-clip  What server/chinese-clip gives.",
        "  server/regenerate    What server/regenerate gives.",
        "  web/regenerate       What web/regenerate gives. (needs server/regenerate)",
        "  web/search-prefix    What web/search-prefix gives.",
    ]
    assert "Immich 3.3, its current release, is not covered" in output


def test_list_of_a_tree(run: Run, tree: Path) -> None:
    run("apply", tree, "search-prefix")
    code, output, errors = run("list", tree)
    assert (code, errors) == (0, "")
    heading, *lines = output.splitlines()
    assert heading == f"{tree}: Immich 3.1.0"
    states = {name: "applied" if name == "web/search-prefix" else "not applied" for name in NAMES}
    assert dict(re.split(r" {2,}", line.strip())[:2] for line in lines) == states


def test_check(run: Run, tree: Path) -> None:
    run("apply", tree, "chinese-clip")
    before = snapshot(tree)
    assert run("check", tree) == (
        0,
        f"{tree}: Immich 3.1.0\n"
        "  server/chinese-clip: applied\n"
        "  server/regenerate: applies\n"
        "  web/regenerate: applies\n"
        "  web/search-prefix: applies\n",
        "",
    )
    assert snapshot(tree) == before


def test_check_of_another_version(run: Run, tree: Path) -> None:
    """As a tree of 3.3 is: each file and each hunk is named."""
    lines = STOCK["server/src/jobs.ts"].splitlines(keepends=True)
    lines[30] = b"something else\n"
    write(tree, {"server/src/jobs.ts": b"".join(lines), "web/src/empty.ts": b"theirs"})
    (tree / PAGE).unlink()
    write(tree, {"server/package.json": b'{"version": "3.3.1"}'})
    before = snapshot(tree)
    code, output, errors = run("check", tree)
    assert code == 1
    files = f"server/src/jobs.ts, web/src/empty.ts (there already, with other content), {PAGE} (missing)"
    assert errors == (
        f"{tree} (calls itself 3.3.1): cannot be patched, for these files are not those of Immich 3.1.0, the nearest "
        f"of those that there are patches for (3.1.0): {files}. Take the source of such a version, or undo what was "
        f"changed in these files\n"
    )
    assert output.splitlines() == [
        "server/chinese-clip for Immich 3.1.0: would apply, but was never tried with this version",
        "server/regenerate for Immich 3.1.0: would not apply:",
        "  server/src/jobs.ts: hunk 2 of 2, line 30",
        "web/regenerate for Immich 3.1.0: would not apply:",
        "  web/src/empty.ts: there already, with other content",
        f"  {PAGE}: hunk 1 of 1, line 1 (no such file)",
        "web/search-prefix for Immich 3.1.0: would apply, but was never tried with this version",
    ]
    for action in ("apply", "revert", "list"):
        code, output, errors = run(action, tree)
        assert (code, output) == (1, "")
        assert "cannot be patched" in errors
        assert "Nothing was changed" in errors
    assert snapshot(tree) == before


def test_the_nearest_version_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest comes first; a tree is compared with the one that it has most files of."""
    monkeypatch.setattr(command, "shipped", lambda: tmp_path / "patches")
    old = {"server/a": b"a\n", "server/b": b"b\n", "server/c": b"c\n"}
    for number, version in enumerate(("3.1.0", "2.7.5", "3.10.0")):
        stock = {path: content + version.encode() for path, content in old.items()}
        changed = {path: b"new\n" + content for path, content in stock.items()}
        put_patch(tmp_path / "patches", "server/x", version, diff(tmp_path / str(number), stock, changed))
    assert main(["patches", "list"]) == 0
    assert re.findall(r"^Immich (\S+)$", capsys.readouterr().out, re.MULTILINE) == ["3.10.0", "3.1.0", "2.7.5"]
    tree = tmp_path / "immich"
    write(tree, {path: content + b"2.7.5" for path, content in old.items()})
    assert main(["patches", "apply", str(tree)]) == 0
    assert "Immich 2.7.5 with server/x" in capsys.readouterr().out
    write(tree, {"server/b": b"mine"})
    assert main(["patches", "check", str(tree)]) == 1
    assert "Immich 2.7.5, the nearest of those that there are patches for (3.10.0, 3.1.0, 2.7.5): server/b." in (
        capsys.readouterr().err
    )


def test_windows_line_endings_are_told(run: Run, tree: Path) -> None:
    write(tree, {ENGLISH: STOCK[ENGLISH].replace(b"\n", b"\r\n")})
    code, _, errors = run("apply", tree)
    assert code == 1
    assert f": {ENGLISH} (Windows line endings). Clone Immich anew with `git clone -c core.autocrlf=false`\n" in errors


def test_a_folder_of_something_else(run: Run, tmp_path: Path) -> None:
    code, _, errors = run("check", tmp_path)
    assert (code, "has none of the files that the patches change" in errors) == (1, True)


def test_a_patch_that_is_there_in_part(run: Run, tree: Path) -> None:
    run("apply", tree)
    write(tree, {ENGLISH: edited([name for name in NAMES if name != "web/regenerate"])[ENGLISH]})
    before = snapshot(tree)
    for action in ("list", "check", "apply", "revert"):
        code, _, errors = run(action, tree)
        assert code == 1
        assert f"{tree}: web/regenerate is there in part: not in {ENGLISH}. Restore all files that it touches" in errors
    assert snapshot(tree) == before


@pytest.mark.parametrize("action", ["check", "apply", "revert"])
def test_used_wrongly(run: Run, tree: Path, action: str) -> None:
    known = ", ".join(NAMES)
    assert run(action, tree, "nonsense") == (2, "", f"nonsense is no patch for Immich 3.1.0. They are {known}\n")
    assert run(action, tree / "no") == (2, "", f"{tree}/no: is no folder. Give the one with Immich's source\n")
    assert run(action, tree / ENGLISH)[0] == 2


def test_without_git(run: Run, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(tree)
    monkeypatch.setenv("PATH", str(tree))
    assert run("apply", tree) == (
        1,
        "",
        "git is not there, which puts patches in. Install it (Debian: apt install git)\n",
    )
    assert snapshot(tree) == before


# ---------------------------------------------------------------- apply and revert


def test_apply_and_revert_all(run: Run, tree: Path, tmp_path: Path) -> None:
    before = snapshot(tree)
    code, output, errors = run("apply", tree)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        *(f"{name}: applied" for name in NAMES),
        f"{tree}: Immich 3.1.0 with {', '.join(NAMES)}",
    ]
    assert snapshot(tree) == expected(tmp_path / "expected", NAMES)
    assert os.access(tree / EXECUTABLE, os.X_OK)
    code, output, errors = run("revert", tree)
    assert (code, errors) == (0, "")
    assert output.splitlines()[-1] == f"{tree}: Immich 3.1.0 with no patches: the stock source"
    assert snapshot(tree) == before


def test_applying_twice_changes_nothing(run: Run, tree: Path) -> None:
    run("apply", tree)
    before = snapshot(tree)
    times = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    code, output, errors = run("apply", tree)
    assert (code, errors) == (0, "")
    assert output.splitlines()[:-1] == [f"{name}: already applied" for name in NAMES]
    assert snapshot(tree) == before
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == times


def test_what_a_patch_needs_comes_along(run: Run, tree: Path, tmp_path: Path) -> None:
    code, output, _ = run("apply", tree, "web/regenerate")
    assert code == 0
    assert output.splitlines()[:-1] == [
        "server/regenerate: needed by web/regenerate",
        "server/regenerate: applied",
        "web/regenerate: applied",
    ]
    assert snapshot(tree) == expected(tmp_path / "expected", ["server/regenerate", "web/regenerate"])


def test_what_needs_a_patch_goes_with_it(run: Run, tree: Path, tmp_path: Path) -> None:
    run("apply", tree)
    code, output, _ = run("revert", tree, "server/regenerate")
    assert code == 0
    assert output.splitlines()[:-1] == [
        "web/regenerate: reverted too, as it needs server/regenerate",
        "server/regenerate: reverted",
        "web/regenerate: reverted",
    ]
    assert snapshot(tree) == expected(tmp_path / "expected", ["server/chinese-clip", "web/search-prefix"])


def test_a_name_without_a_side_means_both(run: Run, tree: Path) -> None:
    assert "with server/regenerate, web/regenerate\n" in run("apply", tree, "regenerate")[1]
    assert "with no patches" in run("revert", tree, "regenerate")[1]


def test_reverting_what_is_not_there(run: Run, tree: Path) -> None:
    before = snapshot(tree)
    code, output, _ = run("revert", tree, "search-prefix")
    assert (code, output.splitlines()[0]) == (0, "web/search-prefix: not applied")
    assert snapshot(tree) == before


def test_modes_stay(run: Run, tree: Path) -> None:
    (tree / ENGLISH).chmod(0o400)
    (tree / PAGE).chmod(0o666)
    before = snapshot(tree)
    assert run("apply", tree)[0] == 0
    after = snapshot(tree)
    assert after.keys() > before.keys()
    assert {path: after[path][0] for path in before} == {path: mode for path, (mode, _) in before.items()}
    assert run("revert", tree)[0] == 0
    assert snapshot(tree) == before


def test_a_checkout_of_git(run: Run, tree: Path) -> None:
    """Its index is left alone, and it is clean again afterwards; as are a person's files beside new ones."""

    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "stock")
    index = (tree / ".git/index").read_bytes()
    assert run("apply", tree)[0] == 0
    assert (tree / ".git/index").read_bytes() == index
    status = git(tree, "status", "--porcelain", "--untracked-files=all").decode()
    assert re.findall(r"^ M (.*)$", status, re.MULTILINE) != []
    assert re.findall(r"^\?\? (.*)$", status, re.MULTILINE) == [
        "server/src/new/deep/job.ts",
        "web/src/empty.ts",
        "web/src/new/menu.svelte",
        "web/src/new/prefix.ts",
    ]
    write(tree, {"web/src/new/mine.ts": b"mine"})
    assert run("revert", tree)[0] == 0
    assert git(tree, "status", "--porcelain", "--untracked-files=all").decode() == "?? web/src/new/mine.ts\n"


def test_neither_settings_nor_repositories_around_have_a_say(
    run: Run, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitconfig").write_text("[core]\nautocrlf = true\n[apply]\nwhitespace = fix\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("apply", tree)[0] == 0
    assert snapshot(tree) == expected(tmp_path / "expected", NAMES)


# ---------------------------------------------------------------- links and other things


@pytest.mark.parametrize("path", [ENGLISH, "i18n", "web", "web/src/empty.ts", "web/src/new", "server/src/new/deep"])
@pytest.mark.parametrize("leads", ["outside", "inside", "nowhere"])
def test_links_are_refused(run: Run, tree: Path, tmp_path: Path, path: str, leads: str) -> None:
    place = tree / path
    target = {"outside": tmp_path / "aim", "inside": tree / "aim", "nowhere": tmp_path / "nothing"}[leads]
    if place.exists():
        place.rename(target)
    elif leads != "nowhere":
        target.mkdir()
    if leads == "nowhere" and target.exists():
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    before = snapshot(tmp_path)
    for action in ("apply", "revert", "check"):
        assert run(action, tree) == (
            1,
            "",
            f"{place}: is a link, which no patch follows. Put what it leads to there itself\n",
        )
    assert snapshot(tmp_path) == before


def test_a_link_to_the_tree_itself_is_followed(run: Run, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    assert run("apply", tmp_path / "link")[0] == 0
    assert snapshot(tree) == expected(tmp_path / "expected", NAMES)


def test_what_is_no_plain_file(run: Run, tree: Path) -> None:
    (tree / "web/src/new").write_text("a file where a folder should be")
    assert run("apply", tree)[2] == f"{tree}/web/src/new: is no folder, as it is in Immich's source\n"
    (tree / "web/src/new").unlink()
    (tree / ENGLISH).unlink()
    os.mkfifo(tree / ENGLISH)
    assert run("apply", tree)[2] == f"{tree}/{ENGLISH}: is no plain file, as it is in Immich's source\n"


# ---------------------------------------------------------------- any tree, any patches, any order

LINES = st.sampled_from(
    [b"a\n", b"b\n", b"  a\n", b"\n", b"a\r\n", b"\xe8\xa1\x8c\n", b"\xff\x00\n", b"@@ -1 +1 @@\n", b"-- a\n"]
)
CONTENTS = st.builds(
    lambda lines, end: b"".join(lines) + end, st.lists(LINES, max_size=12), st.sampled_from([b"", b"a"])
)
PATHS = st.sampled_from(["a", "web/a", "web/b c", "web/[x]/d.ts", "web/new/deep/e.ts", "i18n/行.json", "-f"])


@st.composite
def patched(draw: st.DrawFn) -> tuple[Files, list[Files]]:
    """A tree, and what some patches make of it: lines put in or replaced, and new files."""
    stock = draw(st.dictionaries(PATHS, CONTENTS, min_size=1, max_size=4))
    results = []
    for number in range(draw(st.integers(1, 3))):
        files = dict(stock)
        for path in draw(st.lists(st.sampled_from(sorted(stock)), min_size=1, max_size=2, unique=True)):
            lines = stock[path].splitlines(keepends=True)
            start = draw(st.integers(0, len(lines)))
            stop = draw(st.integers(start, min(start + 1, len(lines))))
            lines[start:stop] = draw(st.lists(st.sampled_from([b"new\n", b"a\n", b"\r\n"]), min_size=1, max_size=2))
            files[path] = b"".join(lines)
        if draw(st.booleans()):
            files[f"new/{number}"] = draw(CONTENTS)
        results.append(files)
    return stock, results


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=patched(),
    context=st.integers(1, 3),
    steps=st.lists(st.tuples(st.sampled_from(["apply", "revert"]), st.sets(st.integers(0, 2))), max_size=4),
)
def test_any_tree_comes_back(
    case: tuple[Files, list[Files]],
    context: int,
    steps: list[tuple[str, set[int]]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is done in whichever order, a command does all of it or nothing, and the stock tree comes back."""
    folder = tmp_path_factory.mktemp("any")
    stock, results = case
    names = {}
    for number, files in enumerate(results):
        if files != stock:
            text = diff(folder / f"scratch{number}", stock, files, context)
            put_patch(folder / "patches", f"web/p{number}", "1.0", text)
            names[number] = f"web/p{number}"
    if not names:
        return
    monkeypatch.setattr(command, "shipped", lambda: folder / "patches")
    tree = put_stock(folder / "tree", stock)
    before = latest = snapshot(tree)
    applied: set[str] = set()
    for action, numbers in steps:
        chosen = {names[number] for number in numbers if number in names}
        code = main(["patches", action, str(tree), *chosen])
        output, errors = capsys.readouterr()
        chosen = chosen or {*names.values()}
        now = snapshot(tree)
        event(f"{action}: {code}")
        if code:
            assert now == latest
            assert "do not go together" in errors or "could not be taken out again" in errors
            continue
        applied = applied | chosen if action == "apply" else applied - chosen
        assert output.splitlines()[-1].endswith(f"with {', '.join(sorted(applied)) or 'no patches: the stock source'}")
        if len(applied) == 1:
            (name,) = applied
            assert now == snapshot(
                put_stock(folder / f"expected-{len(list(folder.iterdir()))}", results[int(name[-1])])
            )
        latest = now
    assert main(["patches", "revert", str(tree)]) == 0
    assert snapshot(tree) == before
    capsys.readouterr()


# ---------------------------------------------------------------- the installed program


def test_an_installed_wheel_has_the_patches(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = tmp_path / "installed/immich_ml_compat/patches/shipped"
    assert snapshot(installed) == snapshot(ROOT / "patches")
    listing = [sys.executable, "-m", "immich_ml_compat", "patches", "list"]
    outputs = {}
    for place in (ROOT, tmp_path / "installed"):
        environment = os.environ | {"PYTHONPATH": str(place)}
        run = subprocess.run(listing, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        outputs[place] = run.stdout
    assert len({*outputs.values()}) == 1
    metadata = next((tmp_path / "installed").glob("*.dist-info/METADATA")).read_text()
    assert "\nLicense-Expression: MIT AND AGPL-3.0-only\n" in metadata
    assert "\nLicense-File: patches/LICENSE\n" in metadata
