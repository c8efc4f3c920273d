"""Patch files: what is refused, and the form of those that come with this project; with Immich's source, the whole.

`IMMICH_SOURCE` names a checkout of Immich of a version that there are patches for, or a folder that holds one per
version. Where its packages are installed, the patched source is type-checked, too.
"""

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from immich_ml_compat.cli import main
from immich_ml_compat.patches import PatchError
from immich_ml_compat.patches.collection import Collection, read_collections, shipped
from immich_ml_compat.patches.git import apply, blob_id
from immich_ml_compat.patches.patch import JOURNAL, Change, Patch, parse_patch
from immich_ml_compat.patches.state import compare

from .patch_trees import STOCK, diff, git, patch, put_patch, put_stock, snapshot

ROOT = Path(__file__).parents[1]
COLLECTIONS = read_collections(shipped())
PATCHES = [item for collection in COLLECTIONS for item in collection.patches]
TOUCHES = {"server": ("server/", "open-api/", "packages/sdk/"), "web": ("web/", "i18n/")}
MOST_CONTEXT = 3

FIRST, SECOND = "1" * 40, "2" * 40
PART = f"diff --git a/x b/x\nindex {FIRST}..{SECOND} 100644\n--- a/x\n+++ b/x\n@@ -1,2 +1,3 @@\n a\n+b\n c\n"
NEW = (
    f"diff --git a/x b/x\nnew file mode 100644\nindex {'0' * 40}..{SECOND}\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+b\n"
)


def each(collection: Collection) -> str:
    return collection.version


# ---------------------------------------------------------------- what is read and what is refused


def test_a_patch_is_read() -> None:
    read = parse_patch(patch("web/a", "3.1.0", (PART + NEW.replace("/x", "/y z")).encode(), ["web/b", "server/c"]))
    assert (read.name, read.version, read.needs) == ("web/a", "3.1.0", ("web/b", "server/c"))
    assert read.changes == (
        Change("x", FIRST, SECOND, ("@@ -1,2 +1,3 @@",), PART.encode()),
        Change("y z", None, SECOND, ("@@ -0,0 +1 @@",), NEW.replace("/x", "/y z").encode()),
    )
    assert read.changes[0].line(1) == 1


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../x",
            "a/../../x",
            "/etc/x",
            "a//x",
            "./x",
            "a/",
            ".git/config",
            "a/.GIT/hooks/x",
            "a\\x",
            "a\tx",
            "a\x1bx",
        ),
        *(f"{JOURNAL}{rest}/x" for rest in ("", ".new", ".old")),
        "a\u202ex",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    for part in (PART, NEW):
        with pytest.raises(PatchError, match="is no path for a patch to touch"):
            parse_patch(patch("web/a", "1", part.replace("/x", f"/{path}").encode()))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("License: AGPL-3.0-only", "License: MIT", "has the licence 'MIT', which must be AGPL-3.0-only"),
        ("License: AGPL-3.0-only\n", "", "lacks the header line 'License'"),
        ("Immich: 1\n", "Immich:\n", "lacks the header line 'Immich'"),
        ("Immich: 1", "Immich: 1\nImmich: 2", "has a header line that is none: 'Immich: 2'"),
        ("Immich: 1", "Immich: 1\nAuthor: x", "has a header line that is none: 'Author: x'"),
        ("\n\ndiff", "\ndiff", "has no empty line"),
        (PART, "", "changes no file"),
        (PART, "hello\n", "has a part that is none of `git diff`'s"),
        (PART, PART + PART, "has two parts for one file"),
        (f"{FIRST}..{SECOND}", "1111111..2222222", "does not have the full ids"),
        (f"{FIRST}..{SECOND}", f"{'0' * 40}..{SECOND}", "does not have the full ids"),
        (f"{FIRST}..{SECOND}", f"{FIRST}..{'0' * 40}", "does not have the full ids"),
        (f"{SECOND} 100644", f"{SECOND} 120000", "does not have the full ids"),
        ("index ", "old mode 100644\nnew mode 100755\nindex ", "is more than new text or a change of text"),
        ("index ", "rename from x\nrename to y\nindex ", "is more than new text or a change of text"),
        ("+++ b/x", "+++ b/y", "is more than new text or a change of text"),
        ("--- a/x", "--- a/../x", "is more than new text or a change of text"),
        ("+++ b/x", "+++ /dev/null", "is more than new text or a change of text"),
        ("a/x b/x", "a/x b/y", "has a part that is none of `git diff`'s"),
        (PART[PART.index("--- ") :], "Binary files a/x and b/x differ\n", "is more than new text or a change of text"),
        (PART[PART.index("--- ") :], "GIT binary patch\nliteral 0\n", "is more than new text or a change of text"),
        ("@@ -1,2", "@@ -1;2", "has a damaged hunk"),
    ],
)
def test_other_forms_are_refused(old: str, new: str, message: str) -> None:
    text = patch("web/a", "1", PART.encode()).decode()
    assert text.count(old) >= 1
    with pytest.raises(PatchError, match=re.escape(message)):
        parse_patch(text.replace(old, new, 1).encode())


def test_links_and_programs_are_not_made() -> None:
    for mode in ("120000", "100755", "160000"):
        with pytest.raises(PatchError):
            parse_patch(patch("web/a", "1", NEW.replace("100644", mode).encode()))


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    for number, (name, text, needs, message) in enumerate(
        [
            ("web/a", NEW, ["web/none"], "web/a for Immich 1 needs web/none, which is not there"),
            ("web/b", PART.replace(FIRST, "3" * 40), [], "are not made for one and the same x"),
            ("web/b", NEW, [], "are not made for one and the same x"),
        ]
    ):
        put_patch(tmp_path / str(number), "web/a", "1", PART.encode())
        put_patch(tmp_path / str(number), name, "1", text.encode(), needs)
        with pytest.raises(PatchError, match=message):
            read_collections(tmp_path / str(number))
    put_patch(tmp_path / "moved", "web/a", "1", PART.encode()).rename(tmp_path / "moved/web/1/b.patch")
    with pytest.raises(PatchError, match="calls itself web/a for Immich 1"):
        read_collections(tmp_path / "moved")


# ---------------------------------------------------------------- the form of those that are shipped


def test_what_the_documents_promise_is_there() -> None:
    of_server = {f"server/{name}" for name in ("chinese-clip", "hybrid-search", "regenerate")}
    of_web = {f"web/{name}" for name in ("hybrid-search", "regenerate", "search-prefix")}
    found = {collection.version: set(collection.names()) for collection in COLLECTIONS}
    assert found == dict.fromkeys(("3.1.0", "2.7.5"), of_server | of_web)


def test_nothing_else_lies_among_them() -> None:
    files = {path.relative_to(ROOT / "patches").as_posix() for path in (ROOT / "patches").rglob("*") if path.is_file()}
    known = {f"{item.name.replace('/', f'/{item.version}/')}.patch" for item in PATCHES}
    rest = {file for file in files - known if not file.startswith("postgres/")}
    assert rest == {"LICENSE", "README.md"}
    assert known <= files


def test_the_documentation_has_each() -> None:
    text = (ROOT / "docs/patches.md").read_text(encoding="utf-8")
    for item in PATCHES:
        assert f"### {item.name.partition('/')[2]}\n" in text
        assert item.version in text


def test_the_documentation_shows_each_picture() -> None:
    text = (ROOT / "docs/patches.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "docs/pictures/patches").iterdir()}
    assert set(re.findall(r"\(pictures/patches/([^)]+)\)", text)) == files


def test_their_licence_is_immichs() -> None:
    licence = (ROOT / "patches/LICENSE").read_text()
    assert licence.split("\n")[0].strip() == "GNU AFFERO GENERAL PUBLIC LICENSE"
    assert len(licence.split("\n")) > 650


@pytest.mark.parametrize("item", PATCHES, ids=lambda item: f"{item.name}-{item.version}")
def test_a_patch_holds_this_projects_lines(item: Patch) -> None:
    """Its own new lines, with no more of Immich's around them than it takes to find the place."""
    assert item.summary.endswith(".")
    assert all(change.path.startswith(TOUCHES[item.name.partition("/")[0]]) for change in item.changes)
    lines = [line for change in item.changes for hunk in hunks(change) for line in hunk[1]]
    assert lines.count("+") > lines.count(" ") + lines.count("-")
    for change in item.changes:
        for _, operations in hunks(change):
            runs = re.split(r"[+-]+", operations)
            assert max(len(runs[0]), len(runs[-1])) <= MOST_CONTEXT, change.path
            assert max(map(len, runs)) <= 2 * MOST_CONTEXT, change.path


@pytest.mark.parametrize("item", PATCHES, ids=lambda item: f"{item.name}-{item.version}")
def test_git_reads_the_same(item: Patch, tmp_path: Path) -> None:
    (tmp_path / "patch").write_bytes(b"".join(change.diff for change in item.changes))
    found = git(tmp_path, "apply", "--numstat", "-z", "patch").decode().strip("\0").split("\0")
    counted = [[str("".join(ops for _, ops in hunks(c)).count(sign)) for sign in "+-"] + [c.path] for c in item.changes]
    assert [line.split("\t") for line in found] == counted


@pytest.mark.parametrize("item", PATCHES, ids=lambda item: f"{item.name}-{item.version}")
def test_a_new_file_has_the_id_that_its_patch_names(item: Patch) -> None:
    new = [change for change in item.changes if change.before is None]
    assert new
    assert [blob_id(apply(None, change)) for change in new] == [change.after for change in new]


@pytest.mark.parametrize("collection", COLLECTIONS, ids=each)
def test_patches_keep_out_of_each_others_way(collection: Collection) -> None:
    for path, patches in collection.touching().items():
        for one, other in itertools.permutations([item.by_path[path] for item in patches], 2):
            assert not in_the_way(one, other), path


def hunks(change: Change) -> Iterator[tuple[int, str]]:
    """Give each hunk's first line in the stock file, and its lines' signs."""
    body = change.diff.decode(errors="replace").split("\n")
    starts = [number for number, line in enumerate(body) if line.startswith("@@")]
    for number, (start, stop) in enumerate(itertools.pairwise([*starts, len(body)]), 1):
        yield change.line(number), "".join(line[0] for line in body[start + 1 : stop] if line and line[0] in " +-")


def in_the_way(one: Change, other: Change) -> bool:
    """Whether a change puts lines between two lines that the other one needs side by side, or takes one of them out."""
    between = {line for start, signs in hunks(one) for line in range(start, start + len(signs.replace("+", "")) - 1)}
    for start, signs in hunks(other):
        line = start - 1
        for sign in signs:
            line += sign != "+"
            if sign != " " and (line in between or (sign == "-" and line - 1 in between)):
                return True
    return False


@pytest.mark.parametrize(("places", "expected"), [((5, 6), False), ((5, 5), True), ((5, 30), False)])
def test_what_is_in_the_way_is_seen(tmp_path: Path, places: tuple[int, int], expected: bool) -> None:
    path = "server/src/jobs.ts"
    found: list[Change] = []
    for number, place in enumerate(places):
        lines = STOCK[path].splitlines(keepends=True)
        lines.insert(place, b"new\n")
        text = diff(tmp_path / str(number), STOCK, STOCK | {path: b"".join(lines)})
        found += parse_patch(patch(f"web/{number}", "1", text)).changes
        put_patch(tmp_path / "patches", f"web/{number}", "1", text)
    assert in_the_way(*found) == expected
    state = compare(put_stock(tmp_path / "tree"), read_collections(tmp_path / "patches")[0])
    if expected:
        with pytest.raises(PatchError, match="do not go together"):
            state.with_patches({"web/0", "web/1"})
    else:
        assert state.with_patches({"web/0", "web/1"})[path] is not None


# ---------------------------------------------------------------- on Immich's source


@pytest.fixture(params=COLLECTIONS, ids=each)
def collection(request: pytest.FixtureRequest) -> Collection:
    """The patches for one version."""
    chosen: Collection = request.param
    return chosen


@pytest.fixture
def source(collection: Collection) -> Path:
    """Immich's own source of that version."""
    given = os.environ.get("IMMICH_SOURCE")
    if not given:
        pytest.skip("IMMICH_SOURCE is not set: Immich's source comes with no clone")
    places = [Path(given), *sorted(Path(given).iterdir())]
    trees = [place for place in places if (place / "server/package.json").is_file()]
    assert trees, f"{given}: neither Immich's source nor a folder of it"
    for tree in trees:
        state = compare(tree, collection)
        if state.is_known and not state.applied:
            return tree
    pytest.skip(f"IMMICH_SOURCE has no unpatched Immich {collection.version}")


def test_all_go_in_and_come_out(
    collection: Collection, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in [*collection.touching(), "server/package.json"]:
        if (source / path).exists():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / path, tmp_path / path)
    before = snapshot(tmp_path)
    state = compare(tmp_path, collection)
    for item in collection.patches:
        state.with_patches({item.name})  # which compares with the ids in the patch
    for action in ("check", "apply", "check", "apply"):
        assert main(["patches", action, str(tmp_path)]) == 0, capsys.readouterr().err
    assert compare(tmp_path, collection).applied == {*collection.names()}
    for name in collection.names():
        assert main(["patches", "revert", str(tmp_path), name]) == 0
    assert snapshot(tmp_path) == before


def test_the_patched_source_is_sound(collection: Collection, source: Path, tmp_path: Path) -> None:
    """TypeScript's and Svelte's own checks, in a copy that shares the installed packages."""
    if not (source / "node_modules/.pnpm").is_dir():
        pytest.skip(f"{source}: its packages are not installed, so there is nothing to check types with")
    tree = tmp_path / "immich"

    def ignored(folder: str, _: list[str]) -> set[str]:
        top = {".git", "mobile", "docs", "e2e", "machine-learning", "design"} if Path(folder) == source else set()
        return top | ({".pnpm"} if folder == str(source / "node_modules") else set())

    shutil.copytree(source, tree, symlinks=True, ignore=ignored)
    (tree / "node_modules/.pnpm").symlink_to((source / "node_modules/.pnpm").resolve())
    assert main(["patches", "apply", str(tree)]) == 0
    sdk = next(folder for folder in ("packages/sdk", "open-api/typescript-sdk") if (tree / folder).is_dir())
    svelte = "svelte-check --no-tsconfig --fail-on-warnings --compiler-warnings state_referenced_locally:ignore"
    for folder, command in [(sdk, "tsc"), ("server", "tsc --noEmit"), ("web", "tsc --noEmit"), ("web", svelte)]:
        program, *options = command.split()
        words = [str(tree / folder / "node_modules/.bin" / program), *options]
        run = subprocess.run(words, cwd=tree / folder, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{folder}: {command}\n{run.stdout}{run.stderr}"
